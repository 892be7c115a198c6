// CUDA prefill: what the launcher (prefill.cu) hands to the kernel of a path, once it has checked everything.
#pragma once

#include "cuda/runtime.h"
#include "params.h"

namespace hsb::cuda {

// mma.sp with all operands in registers: every GPU from sm_80 on.
void prefill_sm80(const hsb_prefill_params &p, const Device &device);

// wgmma.sp, operands in shared memory: sm_90a alone.
void prefill_sm90(const hsb_prefill_params &p, const Device &device);

}  // namespace hsb::cuda

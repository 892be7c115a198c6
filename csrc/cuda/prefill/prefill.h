// CUDA prefill: what the launcher (prefill.cu) hands to the kernel of a path, once it has checked everything.
#pragma once

#include "cuda/runtime.h"
#include "params.h"

namespace hsb::cuda {

// mma.sp with all operands in registers: every GPU from sm_80 on.
void prefill_sm80(const hsb_prefill_params &p, const Device &device);

// wgmma.sp, operands in shared memory: sm_90a alone.
void prefill_sm90(const hsb_prefill_params &p, const Device &device);

// q's sign is flipped instead of the scale's, so that a larger product is always a larger score.
struct ScoreScale {
    float log2;            // powers of 2 per unit of the product; positive
    std::uint32_t flip;    // xor of a pair of q's values: their sign bits, or 0
};
ScoreScale score_scale(float scale);

}  // namespace hsb::cuda

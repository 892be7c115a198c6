// What the launcher (../prefill.cu) calls and each file of an instantiation (instantiation.cu.in) holds one of.
#pragma once

#include "cuda/runtime.h"
#include "params.h"
#include "plan.h"

namespace hsb::cuda::prefill::sm90::fp8 {

// Launches the kernel for page pairs of kind `Pair`, or of any. `a` lacks only what depends on that: ring, tiles, and the
// place of what is moved.
template <class T, int HeadDim, int Pair>
void launch_prefill(const hsb_prefill_params &p, Arguments a, const Device &device);

}  // namespace hsb::cuda::prefill::sm90::fp8

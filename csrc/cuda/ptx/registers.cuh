// Moving registers between the warpgroups of a block (sm_90a).
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::ptx {

// The whole warpgroup gives up registers above `Count` per thread, or waits until it can have so many.
template <int Count>
__device__ __forceinline__ void registers_down_to() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void registers_up_to() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace hsb::cuda::ptx

#endif

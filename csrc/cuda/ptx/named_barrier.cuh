// Barriers among some of a block's warps: sixteen of them by number, 0 is __syncthreads().
#pragma once

namespace hsb::cuda::ptx {

// `threads`: all that take part, whole warps.
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace hsb::cuda::ptx

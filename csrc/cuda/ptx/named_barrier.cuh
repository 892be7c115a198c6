// Barriers among some of a block's warps: sixteen of them by number, 0 is __syncthreads().
#pragma once

namespace hsb::cuda::ptx {

// `threads`: all that take part, whole warps.
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The same; whether `mine` is true for one of them.
__device__ __forceinline__ bool barrier_or(int barrier, int threads, bool mine) {
    int any;
    asm volatile(
        "{\n.reg .pred mine, any;\nsetp.ne.b32 mine, %3, 0;\n"
        "barrier.cta.red.or.aligned.pred any, %1, %2, mine;\nselp.b32 %0, 1, 0, any;\n}"
        : "=r"(any)
        : "r"(barrier), "r"(threads), "r"(static_cast<int>(mine))
        : "memory");
    return any;
}

}  // namespace hsb::cuda::ptx

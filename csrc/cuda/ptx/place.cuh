// A thread's place, read anew at each call: where a value is needed at the two ends of a kernel, deriving it twice spares the
// registers that would hold it in between. Of the built-in variables the compiler keeps what it once derived.
#pragma once

namespace hsb::cuda::ptx {

__device__ __forceinline__ int thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ int block_index() {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ int lane() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

}  // namespace hsb::cuda::ptx

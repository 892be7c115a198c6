// Asynchronous copies of 16 bytes a thread, global to shared (sm_80 and newer).
#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

// Past L1: what is copied is read once.
__device__ __forceinline__ void cp_async_16(std::uint32_t shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of this thread's committed groups are under way.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace hsb::cuda::ptx

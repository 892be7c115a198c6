// Global memory: up to 16 bytes a thread, or a hint.
#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

// Read-only for the whole kernel, and read once: not kept in L1.
__device__ __forceinline__ uint4 load_once_16(const void *global) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}

__device__ __forceinline__ void store_16(void *global, uint4 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

__device__ __forceinline__ void store_8(void *global, uint2 value) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(global), "r"(value.x), "r"(value.y) : "memory");
}

__device__ __forceinline__ void store_4(void *global, std::uint32_t value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

// Asks for a line that will be read later.
__device__ __forceinline__ void prefetch_l2(const void *global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

}  // namespace hsb::cuda::ptx

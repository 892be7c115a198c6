// Shared memory read or filled piecemeal.
#pragma once

#include <cstdint>

#include "shared.cuh"

namespace hsb::cuda::ptx {

// Where `bits & Mask` is not 0: the 16 bits at `address`, which moves on by 2. Else 0, and nothing is read.
template <std::uint32_t Mask>
__device__ __forceinline__ std::uint32_t take_shared_u16_if(std::uint32_t &address, std::uint32_t bits) {
    std::uint32_t value;
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        ".reg .b32 bit;\n"
        "and.b32 bit, %2, %3;\n"
        "setp.ne.b32 there, bit, 0;\n"
        "mov.b32 %0, 0;\n"
        "@there ld.shared.u16 %0, [%1];\n"
        "@there add.u32 %1, %1, 2;\n"
        "}"
        : "=&r"(value), "+r"(address)
        : "r"(bits), "n"(Mask));
    return value;
}

__device__ __forceinline__ void store_shared_u32x2(std::uint32_t address, uint2 value) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(value.x), "r"(value.y) : "memory");
}

// Asynchronous copy of 16 bytes from global + Offset to shared + Offset, past L1, where `there`.
template <int Offset>
__device__ __forceinline__ void cp_async_16_if(std::uint32_t shared, const void *global, bool there) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "setp.ne.b32 there, %2, 0;\n"
        "@there cp.async.cg.shared.global [%0 + %3], [%1 + %3], 16;\n"
        "}" ::"r"(shared),
        "l"(global), "r"(static_cast<int>(there)), "n"(Offset)
        : "memory");
}

// Asynchronous copy of 4 or 8 bytes; zeros where `there` is false, and then nothing is read.
template <int Bytes>
__device__ __forceinline__ void cp_async_or_zero(std::uint32_t shared, const void *global, bool there) {
    static_assert(Bytes == 4 || Bytes == 8, "16 bytes go past L1, see cp_async.cuh");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(Bytes),
                 "r"(there ? Bytes : 0)
                 : "memory");
}

}  // namespace hsb::cuda::ptx

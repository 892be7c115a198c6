// Bytes within registers.
#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

// Four bytes out of eight: nibble i of Selector names byte i of the result, 0..3 of a and 4..7 of b; 8 added to it spreads
// that byte's sign bit over the whole byte.
template <int Selector>
__device__ __forceinline__ std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b) {
    std::uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "n"(Selector));
    return d;
}

// The same, by a selector that is known only now.
__device__ __forceinline__ std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    std::uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// The low, or the high, 16 bits of a and b, a's first.
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
    return permute_bytes<0x5410>(a, b);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
    return permute_bytes<0x7632>(a, b);
}

// (a & mask) | bits in one instruction, whatever the constants are: of two the compiler makes two.
__device__ __forceinline__ std::uint32_t mask_and_set(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
    std::uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(mask), "r"(bits));
    return d;
}

// 0xffff in each half whose sign bit is set, else 0.
__device__ __forceinline__ std::uint32_t spread_signs(std::uint32_t a) { return permute_bytes<0xbb99>(a, a); }

}  // namespace hsb::cuda::ptx

// e4m3, floating point of 8 bits with 4 of exponent and 3 of fraction: to fp16, in which each of its numbers is exact, and
// from fp16 and fp32.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "bytes.cuh"

namespace hsb::cuda::ptx {

// Two of four, the lower one in the low half. From sm_89 on there is an instruction for it; elsewhere an e4m3 with its sign
// moved away from the rest is an fp16 that is 2^8 too small, subnormal numbers too (NaN becomes 480: none is stored).
template <bool High>
__device__ __forceinline__ std::uint32_t fp16x2_of_e4m3x4(std::uint32_t four) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    std::uint32_t two;
    if constexpr (High)
        asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.rn.f16x2.e4m3x2 %0, h;\n}" : "=r"(two) : "r"(four));
    else
        asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.rn.f16x2.e4m3x2 %0, l;\n}" : "=r"(two) : "r"(four));
    return two;
#else
    constexpr std::uint32_t k256 = 0x5c005c00u;
    const std::uint32_t bytes = permute_bytes<High ? 0x3424 : 0x1404>(four, 0);  // each above 8 zero bits
    std::uint32_t two = (bytes & 0x80008000u) | (bytes & 0x7f007f00u) >> 1;
    asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(two) : "r"(k256));
    return two;
#endif
}

// One fp32 number, rounded to nearest even, saturating: where there is no instruction for it.
__device__ __forceinline__ std::uint32_t e4m3_of_bits(float x) {
    const std::uint32_t sign = __float_as_uint(x) >> 24 & 0x80;
    const float magnitude = fminf(fabsf(x), 448.0f);
    if (magnitude < 0x1p-6f)  // 2^14 counts in 2^-9, the smallest there is
        return sign | (__float_as_uint(__fadd_rn(magnitude, 0x1p14f)) - __float_as_uint(0x1p14f));
    const std::uint32_t bits = __float_as_uint(magnitude);
    return sign | ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
}

// Four numbers to four bytes, the first the lowest; each rounded to nearest even, saturating.
__device__ __forceinline__ std::uint32_t e4m3x4_of_fp32(float a, float b, float c, float d) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    std::uint32_t four;
    asm("{\n.reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f32 l, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 h, %4, %3;\n"
        "mov.b32 %0, {l, h};\n}"
        : "=r"(four)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return four;
#else
    return e4m3_of_bits(a) | e4m3_of_bits(b) << 8 | e4m3_of_bits(c) << 16 | e4m3_of_bits(d) << 24;
#endif
}

// The same of two pairs of fp16; infinities saturate, too.
__device__ __forceinline__ std::uint32_t e4m3x4_of_fp16x2(std::uint32_t low, std::uint32_t high) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
    std::uint32_t four;
    asm("{\n.reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f16x2 l, %1;\ncvt.rn.satfinite.e4m3x2.f16x2 h, %2;\n"
        "mov.b32 %0, {l, h};\n}"
        : "=r"(four)
        : "r"(low), "r"(high));
    return four;
#else
    const float2 a = __half22float2(*reinterpret_cast<const __half2 *>(&low));
    const float2 b = __half22float2(*reinterpret_cast<const __half2 *>(&high));
    return e4m3x4_of_fp32(a.x, a.y, b.x, b.y);
#endif
}

}  // namespace hsb::cuda::ptx

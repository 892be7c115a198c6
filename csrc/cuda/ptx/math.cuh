#pragma once

#include <cstdint>

namespace hsb::cuda::ptx {

// 2^x in one instruction, subnormal results flushed to zero; 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Within 2^-22 of log2 x, and within 1 ulp of 1 / x.
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Of a number that is not subnormal, nor is its inverse.
__device__ __forceinline__ float reciprocal_of_normal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger of each of two bf16; NaN is the largest.
__device__ __forceinline__ std::uint32_t max_bf16x2(std::uint32_t a, std::uint32_t b) {
    std::uint32_t y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

// The same of whole numbers (sm_90 and newer); two in a row are one instruction.
__device__ __forceinline__ std::uint32_t max_u16x2(std::uint32_t a, std::uint32_t b) {
    std::uint32_t y;
    asm("max.u16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

// Two fp32 numbers, rounded to nearest even; those beyond the largest finite number become it.
__device__ __forceinline__ std::uint32_t fp16x2_saturated(float low, float high) {
    std::uint32_t y;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
// Towards zero; those beyond the largest finite number, and infinities, become it.
__device__ __forceinline__ std::uint32_t fp16x2_towards_zero(float low, float high) {
    std::uint32_t y;
    asm("cvt.rz.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
// The larger of each of two fp16.
__device__ __forceinline__ std::uint32_t larger_fp16x2(std::uint32_t a, std::uint32_t b) {
    std::uint32_t y;
    asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ std::uint32_t bf16x2_saturated(float low, float high) {
    std::uint32_t y;
    asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

}  // namespace hsb::cuda::ptx

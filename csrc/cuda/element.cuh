// The 16-bit element types of q, K, V and the output, and what each is to the kernels. Nothing else names one, but for
// the products of tensor cores: ptx/mma.cuh and ptx/wgmma.cuh. A new one: its code in params.h, its traits here, its
// products there, and its name in the list of CMakeLists.txt.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/ptx/e4m3.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/types.h"
#include "params.h"

namespace hsb::cuda {

// A sign, exponents and a fraction in 16 bits, as IEEE 754 has them: what its bits tell.
template <int ExponentBits>
struct Float16Bits {
    static constexpr int kFractionBits = 15 - ExponentBits;
    static constexpr int kBias = (1 << (ExponentBits - 1)) - 1;

    // The largest number below 2^power.
    static constexpr std::uint32_t below_power(int power) {
        return (static_cast<std::uint32_t>(kBias + power) << kFractionBits) - 1;
    }
};

// Arithmetic of registers of two.
template <class Pair>
struct PairArithmetic {
    static __device__ __forceinline__ std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
        return bits_of(__hmul2_rn(pair_of(a), pair_of(b)));
    }
    static __device__ __forceinline__ std::uint32_t product_rest(std::uint32_t a, std::uint32_t b,
                                                                 std::uint32_t product) {
        return bits_of(__hfma2(pair_of(a), pair_of(b), __hneg2(pair_of(product))));
    }
    static __device__ __forceinline__ std::uint32_t zero_times(std::uint32_t a, std::uint32_t b) {
        return bits_of(__hfma2(pair_of(a), pair_of(0), pair_of(b)));
    }
    static __device__ __forceinline__ std::uint32_t larger(std::uint32_t a, std::uint32_t b) {
        return bits_of(__hmax2(__habs2(pair_of(a)), __habs2(pair_of(b))));
    }
    static __device__ __forceinline__ std::uint32_t is_ahead(std::uint32_t a, std::uint32_t b) {
        return __hge2_mask(__habs2(pair_of(a)), __habs2(pair_of(b)));
    }

private:
    static __device__ __forceinline__ Pair pair_of(std::uint32_t bits) {
        return *reinterpret_cast<const Pair *>(&bits);
    }
    static __device__ __forceinline__ std::uint32_t bits_of(Pair pair) {
        return *reinterpret_cast<const std::uint32_t *>(&pair);
    }
};

// What each element type tells:
//
//   kCode            its hsb_dtype
//   kLargest         its largest number
//   kHasReserve      whether probabilities are kept some powers of 2 lower (reserve.cuh): where sums of numbers near
//                    kLargest would overflow fp32
//   kWide            whether a block's sum, in units of the least magnitude, has more than 52 bits (compress/loss.cuh)
//   pack(low, high)  two fp32 numbers, rounded, in one register; unpack() turns that back
//   pack_saturated   the same, but that what is beyond the largest number becomes it
//   round(x)         one fp32 number, rounded
//
// and of registers of two:
//
//   multiply(a, b)   rounded
//   product_rest(a, b, product)   what rounding took of it
//   zero_times(a, b) b + 0 a: NaN where a is not finite, or b is NaN
//   larger(a, b)     of each pair of magnitudes the larger one
//   is_ahead(a, b)   0xffff where the magnitude of a is not below b's
//   e4m3(a, b)       both as four bytes, a's low one first: rounded to nearest even, saturating
//   max_pair(a, b)   only with kHasReserve: of two registers, the larger of each pair; NaN is the largest
template <class T>
struct Element;

template <>
struct Element<__half> : Float16Bits<5>, PairArithmetic<__half2> {
    static constexpr hsb_dtype kCode = HSB_FP16;
    static constexpr float kLargest = 65504.0f;
    static constexpr bool kHasReserve = false;
    static constexpr bool kWide = false;

    static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return reinterpret_cast<const std::uint32_t &>(pair);
    }
    static __device__ __forceinline__ float2 unpack(std::uint32_t pair) {
        return __half22float2(*reinterpret_cast<const __half2 *>(&pair));
    }
    static __device__ __forceinline__ std::uint32_t pack_saturated(float low, float high) {
        return ptx::fp16x2_saturated(low, high);
    }
    static __device__ __forceinline__ __half round(float x) { return __float2half_rn(x); }

    static __device__ __forceinline__ std::uint32_t e4m3(std::uint32_t a, std::uint32_t b) {
        return ptx::e4m3x4_of_fp16x2(a, b);
    }
};

template <>
struct Element<__nv_bfloat16> : Float16Bits<8>, PairArithmetic<__nv_bfloat162> {
    static constexpr hsb_dtype kCode = HSB_BF16;
    static constexpr float kLargest = 3.38953139e38f;
    static constexpr bool kHasReserve = true;
    static constexpr bool kWide = true;

    static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return reinterpret_cast<const std::uint32_t &>(pair);
    }
    static __device__ __forceinline__ float2 unpack(std::uint32_t pair) {
        return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
    }
    static __device__ __forceinline__ std::uint32_t pack_saturated(float low, float high) {
        return ptx::bf16x2_saturated(low, high);
    }
    static __device__ __forceinline__ __nv_bfloat16 round(float x) { return __float2bfloat16_rn(x); }
    static __device__ __forceinline__ std::uint32_t max_pair(std::uint32_t a, std::uint32_t b) {
        return ptx::max_bf16x2(a, b);
    }

    static __device__ __forceinline__ std::uint32_t e4m3(std::uint32_t a, std::uint32_t b) {
        const float2 x = unpack(a), y = unpack(b);
        return ptx::e4m3x4_of_fp32(x.x, x.y, y.x, y.y);
    }
};

// What e4m3 values become for products: exact, as they are in no shorter type, and one instruction for two.
using OfE4m3 = __half;

// All of them.
using Elements = Types<__half, __nv_bfloat16>;

// run(T()) for the type of that code, which has been checked.
template <class Run, class First, class... Rest>
decltype(auto) with_element(int dtype, Run &&run, Types<First, Rest...>) {
    if constexpr (sizeof...(Rest) > 0)
        if (dtype != Element<First>::kCode) return with_element(dtype, run, Types<Rest...>());
    return run(First());
}
template <class Run>
decltype(auto) with_element(int dtype, Run &&run) {
    return with_element(dtype, run, Elements());
}

}  // namespace hsb::cuda

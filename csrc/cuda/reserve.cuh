// Probabilities of bf16 are kept some powers of 2 lower than they would be, so that sums of p V do not overflow
// (attention_shape.h says why): what that is to kernels whose references are a bound that is raised late.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "attention_shape.h"
#include "cuda/ptx/math.cuh"

namespace hsb::cuda {

// Whether there is a reserve: that of fp16 is 0, and its code spares itself the arithmetic.
template <class T>
constexpr bool kHasReserve = false;
template <>
constexpr bool kHasReserve<__nv_bfloat16> = true;

// Of a probability, from what its score has above the reference.
template <class T>
__device__ __forceinline__ float exponent(float above, float log2_scale, float reserve) {
    if constexpr (kHasReserve<T>) return fmaf(above, log2_scale, -reserve);
    return above * log2_scale;
}

// ---- References raised once a probability reaches 2^(1 - reserve) ---------------------------------------------------
//
// In fp16 2 or more has bit 14 of its 16 bits set, infinity and NaN too: all of a thread's, or-ed, tell. In bf16 the
// largest of a thread's tells, as a bf16 or, as its sign is plus, as a whole number: on sm_90 one instruction for two
// pairs, as the OR is. Which of the two decides only whether ptxas spills.

// With it, as long as each probability is below 2^(1 - reserve), all of a query's add up to no more than 1/2.
inline float prefill_reserve(std::int32_t dtype, std::int64_t seq) {
    return dtype == HSB_FP16 ? 0.0f : sum_reserve(dtype, seq) + 1.0f;
}

// The largest bf16 below 2^(1 - reserve), twice.
inline std::uint32_t largest_probabilities(float reserve) {
    return ((static_cast<std::uint32_t>(128 - static_cast<int>(reserve)) << 7) - 1) * 0x10001u;
}

// What is kept of a thread's packed probabilities, one pair after the other; 0 at first.
template <class T, bool AsWholeNumbers>
__device__ __forceinline__ std::uint32_t highest_of(std::uint32_t seen, std::uint32_t packed) {
    if constexpr (!kHasReserve<T>) return seen | packed;
    if constexpr (AsWholeNumbers) return ptx::max_u16x2(seen, packed);
    return ptx::max_bf16x2(seen, packed);
}

template <class T, bool AsWholeNumbers>
__device__ __forceinline__ bool too_high(std::uint32_t seen, std::uint32_t largest) {
    constexpr std::uint32_t kTwoOrMore = 0x40004000u;
    if constexpr (kHasReserve<T>) return highest_of<T, AsWholeNumbers>(seen, largest) != largest;
    return seen & kTwoOrMore;
}

}  // namespace hsb::cuda

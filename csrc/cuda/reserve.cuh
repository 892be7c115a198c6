// Probabilities of bf16 are kept some powers of 2 lower than they would be, so that sums of p V do not overflow
// (attention_shape.h says why): what that is to kernels whose references are a bound that is raised late.
#pragma once

#include <cstdint>

#include "attention_shape.h"
#include "cuda/element.cuh"
#include "cuda/ptx/math.cuh"

namespace hsb::cuda {

// Powers of 2 by which probabilities are kept lower: those that sums need (attention_shape.h), and `more`. 0 where sums
// need none: then the kernels spare themselves the arithmetic (Element::kHasReserve).
inline float reserve_of(std::int32_t dtype, std::int64_t seq, float more) {
    const float of_sums = sum_reserve(dtype, seq);
    return of_sums > 0.0f ? of_sums + more : 0.0f;
}

// Of a probability, from what its score has above the reference.
template <class T, bool HasReserve = Element<T>::kHasReserve>
__device__ __forceinline__ float exponent(float above, float log2_scale, float reserve) {
    if constexpr (HasReserve) return fmaf(above, log2_scale, -reserve);
    return above * log2_scale;
}

// ---- References raised once a probability reaches 2^(1 - reserve) ---------------------------------------------------
//
// In fp16 2 or more has bit 14 of its 16 bits set, infinity and NaN too: all of a thread's, or-ed, tell. In bf16 the
// largest of a thread's tells, as a bf16 or, as its sign is plus, as a whole number: on sm_90 one instruction for two
// pairs, as the OR is. Which of the two decides only whether ptxas spills.

// With it, as long as each probability is below 2^(1 - reserve), all of a query's add up to no more than 1/2.
inline float prefill_reserve(std::int32_t dtype, std::int64_t seq) { return reserve_of(dtype, seq, 1.0f); }

// The largest element below 2^(1 - reserve), twice.
inline std::uint32_t largest_probabilities(std::int32_t dtype, float reserve) {
    return with_element(dtype, [&](auto type) {
        return Element<decltype(type)>::below_power(1 - static_cast<int>(reserve)) * 0x10001u;
    });
}

// What is kept of a thread's packed probabilities, one pair after the other; 0 at first.
template <class T, bool AsWholeNumbers>
__device__ __forceinline__ std::uint32_t highest_of(std::uint32_t seen, std::uint32_t packed) {
    if constexpr (!Element<T>::kHasReserve)
        return seen | packed;
    else if constexpr (AsWholeNumbers)
        return ptx::max_u16x2(seen, packed);
    else
        return Element<T>::max_pair(seen, packed);
}

template <class T, bool AsWholeNumbers>
__device__ __forceinline__ bool too_high(std::uint32_t seen, std::uint32_t largest) {
    constexpr std::uint32_t kTwoOrMore = 0x40004000u;
    if constexpr (Element<T>::kHasReserve) return highest_of<T, AsWholeNumbers>(seen, largest) != largest;
    return seen & kTwoOrMore;
}

}  // namespace hsb::cuda

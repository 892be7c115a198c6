// What a fitted cache (key_order, key_shift and value_shift of params.h) asks of a kernel: something once per query,
// nothing per token.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/isa.h"
#include "element.h"
#include "error.h"

namespace hsb::cpu {

template <class P>
void check_fit(const P &p) {
    HSB_CHECK(p.key_order == HSB_ORDER_ADJACENT || p.key_order == HSB_ORDER_MIRROR, "key_order is no hsb_order");
}

#if defined(HSB_ISA)

// A query's channels [head_dim] as those of K stand in HSB_ORDER_MIRROR, in place.
template <class Isa>
void mirror_channels(float *q, int head_dim) {
    constexpr int kMostDims = 128;
    float channel[kMostDims];
    std::memcpy(channel, q, head_dim * sizeof(float));
    const int half = head_dim / 2;
    for (int g = 0; g < half / 2; ++g) {
        q[4 * g] = channel[g];
        q[4 * g + 1] = channel[half - 1 - g];
        q[4 * g + 2] = channel[half + g];
        q[4 * g + 3] = channel[head_dim - 1 - g];
    }
}

// What K's shift took from every score of a query, and so from its log-sum-exp. `index`: of its (batch, kv head).
template <class Isa, class Type, class P>
float shift_of_scores(const P &p, std::int64_t index, const std::uint16_t *q) {
    const float *shift = p.key_shift + index * p.head_dim;
    auto sum = Isa::zero();
    for (int d = 0; d < p.head_dim; d += Isa::width)
        sum = Isa::fma(Isa::load(q + d, Type{}), Isa::load(shift + d), sum);
    return p.scale * Isa::sum(sum);
}

// out * factor + shift. A mean of V lies within the type's range, but what is stored of V was rounded, so that with its
// shift it may pass the largest number: then that is the result. NaN stays NaN.
template <class Isa, class Type>
void add_shift(float *out, float factor, const float *shift, int head_dim) {
    const float largest = to_float(infinity_bits(Type::dtype) - 1, Type{});
    for (int d = 0; d < head_dim; ++d) {
        const float sum = out[d] * factor + shift[d];
        out[d] = sum > largest ? largest : sum < -largest ? -largest : sum;
    }
}

#endif

}  // namespace hsb::cpu

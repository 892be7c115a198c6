// What a fitted cache (key_order, key_shift and value_shift of params.h) asks of a kernel: something once per query,
// nothing per token.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"
#include "element.h"
#include "error.h"

namespace hsb::cpu {

template <class P>
void check_fit(const P &p) {
    HSB_CHECK(p.key_order == HSB_ORDER_ADJACENT || p.key_order == HSB_ORDER_MIRROR, "key_order is no hsb_order");
}

#if defined(HSB_ISA)

template <int head_dim, class Put>
[[gnu::always_inline]] inline void for_each_mirrored_of(Put &&put) {
    constexpr int kHalf = head_dim / 2;
#pragma GCC unroll 1  // unrolled in full, 16 groups are 64 scalar moves
    for (int g = 0; g < kHalf / 2; ++g) {
        put(4 * g, g);
        put(4 * g + 1, kHalf - 1 - g);
        put(4 * g + 2, kHalf + g);
        put(4 * g + 3, head_dim - 1 - g);
    }
}

// Calls put(place, channel) for the places of HSB_ORDER_MIRROR. Loops of a known length, which compilers vectorise.
template <class Put>
[[gnu::always_inline]] inline void for_each_mirrored(int head_dim, Put &&put) {
    if (head_dim == 64) return for_each_mirrored_of<64>(put);
    for_each_mirrored_of<128>(put);
}

// out * factor * scale * unit + shift, of this kv head; scale and shift may be null, for 1 and nothing. A mean of V lies within
// the type's range, but what is stored of V was rounded, so that it, or it and its shift, may pass the largest number: then
// that is the result. NaN stays NaN.
template <class Isa, class Type>
void finish_output(float *out, float factor, const float *scale, float unit, const float *shift, int head_dim) {
    const float bound = to_float(infinity_bits(Type::dtype) - 1, Type{});
    const auto largest = Isa::set(bound), lowest = Isa::set(-bound), both = Isa::set(factor);
    for (int d = 0; d < head_dim; d += Isa::width) {
        const auto added = shift ? Isa::load(shift + d) : Isa::zero();
        const auto sum =
            scale ? Isa::fma(Isa::mul(Isa::load(out + d), both), Isa::mul(Isa::load(scale + d), Isa::set(unit)), added)
                  : Isa::fma(Isa::load(out + d), both, added);
        Isa::store(out + d, Isa::max(lowest, Isa::min(largest, sum)));
    }
}

#endif

}  // namespace hsb::cpu

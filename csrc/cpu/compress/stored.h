// What is stored of a token: its channels less a shift, rounded once to the type, saturating. For kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/isa.h"
#include "element.h"

namespace hsb::cpu {

// Of x [head_dim], in its own order; shift may be NULL.
template <class Isa, class Type>
[[gnu::always_inline]] inline void store_row(const std::uint16_t *x, const float *shift, int head_dim,
                                             std::uint16_t *stored) {
    if (!shift) {
        std::memcpy(stored, x, static_cast<std::size_t>(head_dim) * 2);
        return;
    }
    const float bound = to_float(infinity_bits(Type::dtype) - 1, Type{});
    const auto most = Isa::set(bound), least = Isa::set(-bound);
    for (int c = 0; c < head_dim; c += Isa::width) {
        const auto moved = Isa::sub(Isa::load(x + c, Type{}), Isa::load(shift + c));
        Isa::store(stored + c, Isa::max(least, Isa::min(most, moved)), Type{});
    }
}

}  // namespace hsb::cpu

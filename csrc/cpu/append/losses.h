// The loss of a block that is judged while a cache grows: a sum in fp64 whose order is fixed (hsb_growing).
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/compress/compress.h"
#include "cpu/page.h"
#include "cpu/simd/half.h"

namespace hsb::cpu {

// Of scores [64, head_dim]: the magnitudes that 2:4 drops, by halves.
inline double loss_by_halves(const std::uint16_t *scores, BlockShape shape) {
    constexpr int kGroup = 4;
    constexpr std::uint16_t kMagnitude = 0x7fff;
    double dropped[kBlock * 128] = {};
    const int count = kBlock * shape.head_dim;
    const int apart = shape.of_groups().operand == HSB_KEY ? 1 : shape.head_dim;  // of a group's elements
    const auto look = [&](int first) {
        for (int i = 0; i < kGroup; ++i) {
            const int mine = first + i * apart;
            int beaten_by = 0;
            for (int j = 0; j < kGroup; ++j) {
                const int own = scores[mine] & kMagnitude, other = scores[first + j * apart] & kMagnitude;
                beaten_by += other > own || (other == own && j < i);
            }
            if (beaten_by >= 2)
                dropped[mine] =
                    with_type(shape.dtype, [&](auto type) { return std::fabs(to_float(scores[mine], type)); });
        }
    };
    if (apart == 1)
        for (int first = 0; first < count; first += kGroup) look(first);
    else
        for (int token = 0; token < kBlock; token += kGroup)
            for (int c = 0; c < shape.head_dim; ++c) look(token * shape.head_dim + c);
    for (int half = count / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) dropped[i] += dropped[i + half];
    return dropped[0];
}

}  // namespace hsb::cpu

// 2:4 rows of int4 of V times the probabilities of `heads` query heads, in whole numbers (../int4/decode.h): dense work, on
// levels that are spread out as they are read, for it is the outputs that a group's two values belong to. A lane of 32 bits has
// one head dim of two tokens.
#pragma once

#include "../int4/decode.h"
#include "page.h"

namespace hsb::cpu {

// Of two tokens, dim `dim` of each lane's group: what a slot keeps, or 0.
template <class Isa, int dim>
[[gnu::always_inline]] inline typename Isa::Word spread_level(const typename Isa::Select (&kept)[4],
                                                              typename Isa::Word first, typename Isa::Word second) {
    if constexpr (dim == 0) return Isa::keep(kept[0], first);
    if constexpr (dim == 1) return Isa::keep(kept[1], Isa::choose(kept[0], second, first));
    if constexpr (dim == 2) return Isa::keep(kept[2], Isa::choose(kept[3], first, second));
    if constexpr (dim == 3) return Isa::keep(kept[3], second);
}

// Sums over a row's tokens, of `dims` head dims of each group from dim `from` on: sums [heads][4][lanes], in units of y.
template <class Isa, int heads, int from, int dims>
[[gnu::always_inline]] inline void sum_whole_rows(const std::uint32_t *words, const WholeX<heads> &x,
                                                  float (*sums)[4][Isa::width]) {
    using Word = typename Isa::Word;
    Word whole[heads][dims];
    for (int h = 0; h < heads; ++h)
        for (int i = 0; i < dims; ++i) whole[h][i] = Isa::set(0u);
    for (int eighth = 0; eighth < Int4RowsKind::eighths; ++eighth, words += Int4RowsKind::words) {
        const Word masks = Isa::load(words), low = Isa::load(words + Int4RowsKind::lanes);
        const Word high = Isa::load(words + 2 * Int4RowsKind::lanes);
        const auto pair = [&](auto place) __attribute__((always_inline)) {
            constexpr int j = decltype(place)::value;
            const typename Isa::Select kept[4] = {
                Isa::template select<kHalfDigits * j>(masks), Isa::template select<kHalfDigits * j + 1>(masks),
                Isa::template select<kHalfDigits * j + 2>(masks), Isa::template select<kHalfDigits * j + 3>(masks)};
            const Word first = Isa::template levels<j>(low), second = Isa::template levels<j>(high);
            Word level[dims];
            level[0] = spread_level<Isa, from>(kept, first, second);
            level[1] = spread_level<Isa, from + 1>(kept, first, second);
            if constexpr (dims == 4) {
                level[2] = spread_level<Isa, 2>(kept, first, second);
                level[3] = spread_level<Isa, 3>(kept, first, second);
            }
            for (int h = 0; h < heads; ++h) {
                std::uint32_t both;
                std::memcpy(&both, x.x[h] + eighth * kWordDigits + 2 * j, sizeof both);
                const Word factor = Isa::set(both);
                for (int i = 0; i < dims; ++i) whole[h][i] = Isa::dot_whole(level[i], factor, whole[h][i]);
            }
        };
        pair(std::integral_constant<int, 0>{});
        pair(std::integral_constant<int, 1>{});
        pair(std::integral_constant<int, 2>{});
        pair(std::integral_constant<int, 3>{});
    }
    for (int h = 0; h < heads; ++h)
        for (int i = 0; i < dims; ++i)
            Isa::store(sums[h][from + i], Isa::mul(Isa::converted(whole[h][i]), Isa::set(x.unit[h])));
}

// A row: y [heads][y_stride], of 64 head dims.
template <class Isa, int heads>
void multiply_whole_rows(const std::byte *row, const WholeX<heads> &x, float *y, std::ptrdiff_t y_stride) {
    constexpr int width = Isa::width;
    for (int lane = 0; lane < Int4RowsKind::lanes; lane += width) {
        const auto *words = reinterpret_cast<const std::uint32_t *>(row) + lane;
        alignas(64) float sums[heads][4][width];
        if constexpr (Isa::registers >= 32 && heads <= 4) {
            sum_whole_rows<Isa, heads, 0, 4>(words, x, sums);
        } else {
            sum_whole_rows<Isa, heads, 0, 2>(words, x, sums);
            sum_whole_rows<Isa, heads, 2, 2>(words, x, sums);
        }
        for (int h = 0; h < heads; ++h) {
            typename Isa::Float of_dims[4];
            for (int i = 0; i < 4; ++i) of_dims[i] = Isa::load(sums[h][i]);
            Isa::transpose(of_dims);
            for (int k = 0; k < 4; ++k) {
                float *to = y + h * y_stride + k * Int4RowsKind::lanes + lane;
                Isa::store(to, Isa::add(Isa::load(to), of_dims[k]));
            }
        }
    }
}

template <class Isa, class Type, int heads>
void weigh_page(Int4RowsKind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride, float *,
                float *out) {
    const int rows = head_dim / Int4RowsKind::dims;
    const std::byte *row = page + int4_scale_bytes(head_dim);
    WholeX<heads> x[kMostRows];
    for (int i = 0; i < rows; ++i) make_whole<Isa>(page, i, p, p_stride, x[i]);
    for (int i = 0; i < rows; ++i, row += Int4RowsKind::row_bytes) {
        prefetch_share<Int4RowsKind>(page, head_dim, i, rows);
        multiply_whole_rows<Isa>(row, x[i], out + i * Int4RowsKind::dims, head_dim);
    }
}

}  // namespace hsb::cpu

// Pages of int4 as the operand A of prefill's products: what pages of other elements become, values times their scales.
#pragma once

#include "../dense/prefill.h"
#include "../sparse_2_4/prefill.h"
#include "scales.h"

namespace hsb::cpu::prefill {

constexpr hsb_block_kind unpacked_kind(Int4DenseKind) { return unpacked_kind(DenseKind{}); }
constexpr hsb_block_kind unpacked_kind(Int4Sparse24Kind) { return unpacked_kind(Sparse24Kind{}); }

constexpr std::int64_t unpacked_bytes(Int4DenseKind, int head_dim) { return unpacked_bytes(DenseKind{}, head_dim); }
constexpr std::int64_t unpacked_bytes(Int4Sparse24Kind, int head_dim) {
    return unpacked_bytes(Sparse24Kind{}, head_dim);
}

// Calls unpack(tile, scale, row, first) for the tiles of a page, which lie in rows [row, row + 32) and steps [first,
// first + 64). Scales are of these steps: of K, whose rows are 64 tokens, by part of its steps, of V, which has 64 of
// these, by part of its rows.
template <class Isa, class Kind, class Unpack>
void for_each_int4_tile(Kind, const std::byte *page, int rows, int steps, Unpack &&unpack) {
    const std::byte *tile = page + int4_scale_bytes(rows * steps / kBlock);
    for (int row = 0; row < rows; row += kTileLanes)
        for (int first = 0; first < steps; first += kTileSteps, tile += Kind::tile_bytes) {
            alignas(64) float scale[kTileSteps];
            int4_scales<Isa>(page, first / kTileSteps + row / kBlock, scale);
            unpack(tile, scale, row, first);
        }
}

// What a digit counts: of half `half` of a word, at its bits 4 `at`.
inline float int4_value(std::uint32_t word, int half, int at) {
    const auto bits = static_cast<std::int16_t>(word >> 16 * half << (12 - 4 * at) & 0xffff);
    return static_cast<float>(bits >> 11 | 1) * kInt4Level;  // what comes along in the last bit is the next digit's
}

template <class Isa, class Type>
void unpack_page(Int4DenseKind kind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    auto *out = reinterpret_cast<float *>(unpacked);
    for_each_int4_tile<Isa>(
        kind, page, rows, steps, [&](const std::byte *tile, const float *scale, int row, int first) {
            unpack_dense_steps<Isa>(row, first, steps, out, [&](int c, float (&wide)[kTileLanes]) {
                const auto *words = reinterpret_cast<const std::uint32_t *>(tile) + c / kWordDigits * kTileLanes;
                const int half = c % 2, at = c % kWordDigits / 2;
                for (int l = 0; l < kTileLanes; ++l) wide[l] = int4_value(words[l], half, at) * scale[c];
            });
        });
}

template <class Isa, class Type>
void unpack_page(Int4Sparse24Kind kind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    auto *out = reinterpret_cast<QuadGroup *>(unpacked);
    for_each_int4_tile<Isa>(
        kind, page, rows, steps, [&](const std::byte *tile, const float *scale, int row, int first) {
            const auto *words = reinterpret_cast<const std::uint32_t *>(tile + kPatternBytes);
            unpack_sparse_groups<Isa>(tile, row, first / 4, steps / 4, out,
                                      [&](int g, int slot, const std::uint32_t *position, float *wide) {
                                          const std::uint32_t *of_group = words + g / kHalfDigits * kTileLanes;
                                          const int at = g % kHalfDigits;
                                          for (int l = 0; l < kTileLanes; ++l)
                                              wide[l] = int4_value(of_group[l], slot, at) * scale[4 * g + position[l]];
                                      });
        });
}

}  // namespace hsb::cpu::prefill

// 2:4 pages as the operand A of prefill's products (cpu/prefill/products.h), unpacked: QuadGroup [rows / 4][steps / 4].
#pragma once

#include <cstring>

#include "cpu/prefill/tile.h"
#include "cpu/simd/isa.h"
#include "patterns.h"

namespace hsb::cpu::prefill {

// Rows in flight together. Loads are the limit: per step of one quad, 4 * vectors of x, one of values and one of offsets.
constexpr int kQuad = 4;
static_assert(kQuad * Tile<Isa>::vectors + 4 <= Isa::registers, "accumulators of a quad and its temporaries");

// One group of 4 steps for a quad of rows. The values of 4 rows lie together: one load brings them into a register,
// from which each is broadcast by a shuffle; four broadcast loads would compete with the loads of x.
struct QuadGroup {
    float value[2][kQuad];           // by kept slot
    std::uint16_t offset[2][kQuad];  // of the row of x that the value multiplies, bytes
};
static_assert(sizeof(QuadGroup) == 48, "no 16-byte load of it may straddle a cache line");

constexpr hsb_block_kind unpacked_kind(Sparse24Kind kind) { return kind.kind; }

constexpr std::int64_t unpacked_bytes(Sparse24Kind, int head_dim) {
    return kBlock / kQuad * head_dim / 4 * static_cast<std::int64_t>(sizeof(QuadGroup));
}

// One tile: rows [row, row + 32) and groups [first, first + 16) of `out`, which has `groups` groups a row. load(g, slot,
// position, wide) reads what a slot of group g of the tile keeps, of each lane, in which place of four.
template <class Isa, class Load>
void unpack_sparse_groups(const std::byte *tile, int row, int first, int groups, QuadGroup *out, Load &&load) {
    PatternWords<Isa> words;
    read_patterns<Isa>(tile, words);
    for (int g = 0; g < kTileGroups; ++g) {
        const std::uint32_t base = 4 * static_cast<std::uint32_t>(first + g) * Tile<Isa>::row_bytes;
        std::uint32_t position[2][kTileLanes];
        std::uint16_t offset[2][kTileLanes];
        float wide[2][kTileLanes];
        words.positions(g, position);
        for (int slot = 0; slot < 2; ++slot) {
            for (int l = 0; l < kTileLanes; ++l)
                offset[slot][l] = static_cast<std::uint16_t>(base + position[slot][l] * Tile<Isa>::row_bytes);
            load(g, slot, position[slot], wide[slot]);
        }
        for (int quad = 0; quad < kTileLanes / kQuad; ++quad) {
            QuadGroup &to = out[(row / kQuad + quad) * groups + first + g];
            for (int slot = 0; slot < 2; ++slot) {
                std::memcpy(to.value[slot], wide[slot] + kQuad * quad, sizeof to.value[slot]);
                std::memcpy(to.offset[slot], offset[slot] + kQuad * quad, sizeof to.offset[slot]);
            }
        }
    }
}

template <class Isa, class Type>
void unpack_page(Sparse24Kind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    auto *out = reinterpret_cast<QuadGroup *>(unpacked);
    constexpr std::int64_t kTileBytes = Sparse24Kind::tile_bytes_of(sizeof(typename Type::Value));
    static_assert(128 * Tile<Isa>::row_bytes <= 0x10000, "offsets are 16 bits");
    for (int row = 0; row < rows; row += kTileLanes)
        for (int first = 0; first < steps; first += kTileSteps, page += kTileBytes)
            unpack_sparse_groups<Isa>(
                page, row, first / 4, steps / 4, out, [page](int g, int slot, const std::uint32_t *, float *wide) {
                    using Value = typename Type::Value;
                    const auto *value =
                        reinterpret_cast<const Value *>(page + kPatternBytes) + (2 * g + slot) * kTileLanes;
                    for (int l = 0; l < kTileLanes; l += Isa::width) Isa::store(wide + l, Isa::load(value + l, Type{}));
                });
}

// One row of a quad: its kept value times the row of x at `offset`.
template <class Isa, int row>
inline void quad_row(typename Isa::Float (&sum)[kQuad][Tile<Isa>::vectors], typename Isa::Float values, const char *x,
                     std::uint64_t offsets) {
    const auto factor = Isa::template splat<row>(values);
    const auto *from = reinterpret_cast<const float *>(x + (offsets >> 16 * row & 0xffff));
    for (int v = 0; v < Tile<Isa>::vectors; ++v)
        sum[row][v] = Isa::fma(factor, Isa::load(from + v * Isa::width), sum[row][v]);
}

template <class Isa, bool accumulate>
void multiply_page(Sparse24Kind, const std::byte *a, int rows, int steps, const float *x, float *y,
                   const float *scale) {
    using T = Tile<Isa>;
    const auto *group = reinterpret_cast<const QuadGroup *>(a);
    const auto *from = reinterpret_cast<const char *>(x);
    for (int row = 0; row < rows; row += kQuad, y += kQuad * T::lanes) {
        typename Isa::Float sum[kQuad][T::vectors];
        begin_rows<Isa, kQuad, accumulate>(sum, y, scale);
        for (const QuadGroup *end = group + steps / 4; group != end; ++group)
            for (int slot = 0; slot < 2; ++slot) {
                const auto values = Isa::load_quad(group->value[slot]);
                std::uint64_t offsets;  // all four by one load: loads are what is short
                std::memcpy(&offsets, group->offset[slot], sizeof offsets);
                quad_row<Isa, 0>(sum, values, from, offsets);
                quad_row<Isa, 1>(sum, values, from, offsets);
                quad_row<Isa, 2>(sum, values, from, offsets);
                quad_row<Isa, 3>(sum, values, from, offsets);
            }
        end_rows<Isa, kQuad>(sum, y);
    }
}

}  // namespace hsb::cpu::prefill

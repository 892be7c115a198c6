// Pages of int4 as the operand A of prefill's products: what pages of other elements become, values times their scales.
#pragma once

#include "../dense/prefill.h"
#include "../sparse_2_4/prefill.h"
#include "tile.h"

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

template <class Isa, class Type>
void unpack_page(Int4DenseKind kind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    auto *out = reinterpret_cast<float *>(unpacked);
    for_each_int4_tile<Isa>(kind, page, rows, steps,
                            [&](const std::byte *tile, const float *scale, int row, int first) {
                                Int4DenseTile wide;
                                widen_tile(tile, wide);
                                unpack_dense_tile<Isa, Int4Bytes>(wide.bytes, row, first, steps, out);
                                constexpr int kRows = kDenseRows<Isa>;
                                for (int panel = row / kRows; panel < (row + kTileLanes) / kRows; ++panel)
                                    for (int c = 0; c < kTileSteps; ++c)
                                        for (int r = 0; r < kRows; ++r)
                                            out[(panel * steps + first + c) * kRows + r] *= scale[c];
                            });
}

template <class Isa, class Type>
void unpack_page(Int4Sparse24Kind kind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    auto *out = reinterpret_cast<QuadGroup *>(unpacked);
    for_each_int4_tile<Isa>(
        kind, page, rows, steps, [&](const std::byte *tile, const float *scale, int row, int first) {
            Int4SparseTile wide;
            widen_tile(tile, wide);
            unpack_sparse_tile<Isa, Int4Bytes>(wide.bytes, row, first / 4, steps / 4, out);
            for (int quad = row / kQuad; quad < (row + kTileLanes) / kQuad; ++quad)
                for (int g = 0; g < kTileGroups; ++g) {
                    QuadGroup &group = out[quad * (steps / 4) + first / 4 + g];
                    for (int slot = 0; slot < 2; ++slot)
                        for (int r = 0; r < kQuad; ++r)
                            group.value[slot][r] *= scale[group.offset[slot][r] / Tile<Isa>::row_bytes - first];
                }
        });
}

}  // namespace hsb::cpu::prefill

// Dense pages as the operand A of prefill's products (cpu/prefill/products.h), unpacked:
// float [rows / kDenseRows][steps][kDenseRows].
#pragma once

#include <cstring>

#include "cpu/prefill/tile.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu::prefill {

// In flight together: kDenseRows * vectors accumulators, `vectors` of x and one of A.
template <class Isa>
constexpr int kDenseRows = Isa::registers >= 32 ? 8 : 4;
static_assert(kDenseRows<Isa> * Tile<Isa>::vectors + Tile<Isa>::vectors + 1 <= Isa::registers,
              "accumulators of a dense panel");

constexpr hsb_block_kind unpacked_kind(DenseKind kind) { return kind.kind; }

constexpr std::int64_t unpacked_bytes(DenseKind, int head_dim) { return kBlock * head_dim * sizeof(float); }

// One tile: rows [row, row + 32) and steps [first, first + 64) of `out`, which has `steps` steps a row. load(c, wide) reads
// step c of the tile.
template <class Isa, class Load>
void unpack_dense_steps(int row, int first, int steps, float *out, Load &&load) {
    constexpr int kRows = kDenseRows<Isa>;
    for (int c = 0; c < kTileSteps; ++c) {
        float wide[kTileLanes];
        load(c, wide);
        for (int l = 0; l < kTileLanes; l += kRows)
            std::memcpy(out + ((row + l) / kRows * steps + first + c) * kRows, wide + l, kRows * sizeof(float));
    }
}

template <class Isa, class Type>
void unpack_page(DenseKind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    constexpr std::int64_t kTileBytes = DenseKind::tile_bytes_of(sizeof(typename Type::Value));
    for (int row = 0; row < rows; row += kTileLanes)
        for (int first = 0; first < steps; first += kTileSteps, page += kTileBytes)
            unpack_dense_steps<Isa>(row, first, steps, reinterpret_cast<float *>(unpacked),
                                    [page](int c, float (&wide)[kTileLanes]) {
                                        using Value = typename Type::Value;
                                        const auto *value = reinterpret_cast<const Value *>(page) + c * kTileLanes;
                                        for (int l = 0; l < kTileLanes; l += Isa::width)
                                            Isa::store(wide + l, Isa::load(value + l, Type{}));
                                    });
}

template <class Isa, bool accumulate>
void multiply_page(DenseKind, const std::byte *a, int rows, int steps, const float *x, float *y, const float *scale) {
    using T = Tile<Isa>;
    constexpr int kRows = kDenseRows<Isa>;
    const auto *value = reinterpret_cast<const float *>(a);
    for (int row = 0; row < rows; row += kRows, y += kRows * T::lanes) {
        typename Isa::Float sum[kRows][T::vectors];
        begin_rows<Isa, kRows, accumulate>(sum, y, scale);
        const float *from = x;
        for (int c = 0; c < steps; ++c, from += T::lanes, value += kRows) {
            typename Isa::Float b[T::vectors];
            for (int v = 0; v < T::vectors; ++v) b[v] = Isa::load(from + v * Isa::width);
            for (int r = 0; r < kRows; ++r) {
                const auto factor = Isa::set(value[r]);
                for (int v = 0; v < T::vectors; ++v) sum[r][v] = Isa::fma(factor, b[v], sum[r][v]);
            }
        }
        end_rows<Isa, kRows>(sum, y);
    }
}

}  // namespace hsb::cpu::prefill

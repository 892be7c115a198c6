// 2:4 rows of V times the probabilities of `heads` query heads: dense rows, spread out as they are read.
#pragma once

#include "cpu/decode/prefetch.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

// Two tiles side by side, as of dense pages (../dense/decode.h): y [heads][y_stride] is 64 lanes wide; x [heads][x_stride].
template <class Isa, class Type, int heads>
void multiply_row_tiles(const std::byte *tiles, const float *x, std::ptrdiff_t x_stride, float *y,
                        std::ptrdiff_t y_stride) {
    using Value = typename Type::Value;
    constexpr std::size_t kTileBytes = Sparse24RowsKind::tile_bytes_of(sizeof(Value));
    constexpr int kKept = Sparse24RowsKind::kept, width = Isa::width;
    constexpr int kRowsPerLine = kCacheLine / (kKept * static_cast<int>(sizeof(Value)));
    constexpr int vectors = Isa::registers >= 32 && heads <= 4 ? 4 : 2;
    constexpr std::uint32_t kLanes = (1u << width) - 1;
    for (int lane = 0; lane < 2 * kTileLanes; lane += vectors * width) {
        const std::uint32_t *masks[vectors];
        const Value *values[vectors];
        for (int v = 0; v < vectors; ++v) {
            const int at = lane + v * width;
            const std::byte *tile = tiles + at / kTileLanes * kTileBytes;
            masks[v] = reinterpret_cast<const std::uint32_t *>(tile);
            values[v] = reinterpret_cast<const Value *>(tile + Sparse24RowsKind::values_at) + at % kTileLanes / 2;
        }
        typename Isa::Float sums[heads][vectors];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::load(y + h * y_stride + lane + v * width);
#pragma GCC unroll 4
        for (int c = 0; c < kTileSteps; ++c) {
            typename Isa::Float a[vectors];
            for (int v = 0; v < vectors; ++v) {
                const int in_tile = (lane + v * width) % kTileLanes;
                const Value *value = values[v] + c * kKept;
                if (in_tile == 0 && c % kRowsPerLine == 0)
                    prefetch(reinterpret_cast<const std::byte *>(value) + kAhead * kTileBytes);
                if (in_tile == 0 && c % (kCacheLine / 4) == 0)
                    prefetch(reinterpret_cast<const std::byte *>(masks[v] + c) + kAhead * kTileBytes);
                a[v] = Isa::expand_half(value, masks[v][c] >> in_tile & kLanes, Type{});
            }
            for (int h = 0; h < heads; ++h) {
                const typename Isa::Float factor = Isa::set(x[h * x_stride + c]);
                for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::fma(a[v], factor, sums[h][v]);
            }
        }
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < vectors; ++v) Isa::store(y + h * y_stride + lane + v * width, sums[h][v]);
    }
}

// out[head][dim] += p . v: p [heads][p_stride], out [heads][head_dim].
template <class Isa, class Type, int heads>
void weigh_page(Sparse24RowsKind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride, float *,
                float *out) {
    constexpr std::size_t kTileBytes = Sparse24RowsKind::tile_bytes_of(sizeof(typename Type::Value));
    for (int tile = 0; tile < head_dim / kTileLanes; tile += 2)
        multiply_row_tiles<Isa, Type, heads>(page + tile * kTileBytes, p, p_stride, out + tile * kTileLanes, head_dim);
}

}  // namespace hsb::cpu

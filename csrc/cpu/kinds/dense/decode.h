// Dense pages times the vectors of `heads` query heads:  y[head][lane] += sum over c of A[lane][c] * x[head][c].
#pragma once

#include "cpu/decode/prefetch.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

// Two tiles whose lanes follow each other and whose steps are the same: y is 64 lanes wide. 32 registers hold 4
// vectors a head, which halves the broadcasts of x per FMA: 11% less time than with 2.
// x: [heads][x_stride] floats, y: [heads][y_stride] floats; the second tile is tile_stride bytes on.
template <class Isa, class Type, int heads>
void multiply_dense_tiles(const std::byte *tile, std::size_t tile_stride, const float *x, std::ptrdiff_t x_stride,
                          float *y, std::ptrdiff_t y_stride) {
    using Value = typename Type::Value;
    constexpr std::size_t kTileBytes = DenseKind::tile_bytes_of(sizeof(Value));
    constexpr int kStepsPerLine = kCacheLine / (kTileLanes * static_cast<int>(sizeof(Value)));
    constexpr int width = Isa::width;
    constexpr int vectors = Isa::registers >= 32 && heads <= 4 ? 4 : 2;
    for (int lane = 0; lane < 2 * kTileLanes; lane += vectors * width) {
        const Value *values[vectors];
        for (int v = 0; v < vectors; ++v) {
            const int at = lane + v * width;
            values[v] = reinterpret_cast<const Value *>(tile + at / kTileLanes * tile_stride) + at % kTileLanes;
        }
        typename Isa::Float sums[heads][vectors];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::load(y + h * y_stride + lane + v * width);
#pragma GCC unroll 4
        for (int c = 0; c < kTileSteps; ++c) {
            typename Isa::Float a[vectors];
            for (int v = 0; v < vectors; ++v) {
                const Value *value = values[v] + c * kTileLanes;
                if ((lane + v * width) % kTileLanes == 0 && c % kStepsPerLine == 0)
                    prefetch(reinterpret_cast<const std::byte *>(value) + kAhead * kTileBytes);
                a[v] = Isa::load(value, Type{});
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

// y[head][token] += q . k: q [heads][head_dim], y [heads][y_stride].
template <class Isa, class Type, int heads>
void score_page(DenseKind, const std::byte *page, int head_dim, const float *q, const float *, float *y,
                std::ptrdiff_t y_stride) {
    constexpr std::size_t kTileBytes = DenseKind::tile_bytes_of(sizeof(typename Type::Value));
    const int parts = head_dim / kTileSteps;  // tiles side by side along head_dim
    for (int part = 0; part < parts; ++part)
        multiply_dense_tiles<Isa, Type, heads>(page + part * kTileBytes, parts * kTileBytes, q + part * kTileSteps,
                                               head_dim, y, y_stride);
}

// out[head][dim] += p . v: p [heads][p_stride], out [heads][head_dim].
template <class Isa, class Type, int heads>
void weigh_page(DenseKind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride, float *,
                float *out) {
    constexpr std::size_t kTileBytes = DenseKind::tile_bytes_of(sizeof(typename Type::Value));
    for (int tile = 0; tile < head_dim / kTileLanes; tile += 2)
        multiply_dense_tiles<Isa, Type, heads>(page + tile * kTileBytes, kTileBytes, p, p_stride,
                                               out + tile * kTileLanes, head_dim);
}

}  // namespace hsb::cpu

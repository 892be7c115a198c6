// Pages of int4 times the vectors of `heads` query heads. Scales belong to steps, so x takes them in, page by page; what
// is left are tiles of e4m3, whose products the other kinds have.
#pragma once

#include "../dense/decode.h"
#include "../sparse_2_4/decode.h"
#include "tile.h"

namespace hsb::cpu {

// x [heads][x_stride] times row `row` of a page's scales: [heads][64].
template <class Isa, int heads>
void take_scales(const std::byte *page, int row, const float *x, std::ptrdiff_t x_stride,
                 float (&scaled)[heads][kTileSteps]) {
    alignas(64) float scale[kTileSteps];
    int4_scales<Isa>(page, row, scale);
    for (int h = 0; h < heads; ++h)
        for (int c = 0; c < kTileSteps; c += Isa::width)
            Isa::store(scaled[h] + c, Isa::mul(Isa::load(x + h * x_stride + c), Isa::load(scale + c)));
}

// Two tiles whose steps, and so their scales, are the same, and whose lanes follow each other: y [heads][y_stride], of 64
// lanes.
template <class Isa, int heads>
void multiply_int4_tiles(Int4DenseKind, const std::byte *first, const std::byte *second,
                         const float (&x)[heads][kTileSteps], float *y, std::ptrdiff_t y_stride) {
    Int4DenseTile tiles[2];
    for (const std::byte *tile : {first, second}) {
        prefetch_tile(tile, Int4DenseKind::tile_bytes);
        widen_tile(tile, tiles[tile == second]);
    }
    multiply_dense_tiles<Isa, Int4Bytes, heads>(tiles[0].bytes, sizeof(Int4DenseTile), x[0], kTileSteps, y, y_stride);
}
template <class Isa, int heads>
void multiply_int4_tiles(Int4Sparse24Kind, const std::byte *first, const std::byte *second,
                         const float (&x)[heads][kTileSteps], float *y, std::ptrdiff_t y_stride) {
    constexpr Factor kFactor = Factor::probability;  // either: tables of e4m3 are of floats
    alignas(64) float tables[kTileGroups * heads * kTable];
    make_tables<Isa, Int4Bytes, kFactor, heads>(x[0], kTileSteps, kTileGroups, tables);
    for (const std::byte *tile : {first, second}) {
        Int4SparseTile wide;
        prefetch_tile(tile, Int4Sparse24Kind::tile_bytes);
        widen_tile(tile, wide);
        multiply_tile<Isa, Int4Bytes, kFactor, heads>(wide.bytes, tables, y + (tile == second) * kTileLanes, y_stride);
    }
}

template <class Isa, int heads, class Kind>
void score_int4_page(Kind kind, const std::byte *page, int head_dim, const float *q, float *y,
                     std::ptrdiff_t y_stride) {
    const std::byte *tiles = page + int4_scale_bytes(head_dim);
    const int parts = head_dim / kTileSteps;  // tiles side by side along head_dim
    for (int part = 0; part < parts; ++part) {
        alignas(64) float x[heads][kTileSteps];
        take_scales<Isa>(page, part, q + part * kTileSteps, head_dim, x);
        const std::byte *tile = tiles + part * Kind::tile_bytes;
        multiply_int4_tiles<Isa>(kind, tile, tile + parts * Kind::tile_bytes, x, y, y_stride);
    }
}

template <class Isa, int heads, class Kind>
void weigh_int4_page(Kind kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                     float *out) {
    const std::byte *tile = page + int4_scale_bytes(head_dim);
    for (int row = 0; row < head_dim / (2 * kTileLanes); ++row, tile += 2 * Kind::tile_bytes) {
        alignas(64) float x[heads][kTileSteps];
        take_scales<Isa>(page, row, p, p_stride, x);
        multiply_int4_tiles<Isa>(kind, tile, tile + Kind::tile_bytes, x, out + row * 2 * kTileLanes, head_dim);
    }
}

template <class Isa, class Type, int heads>
void score_page(Int4DenseKind kind, const std::byte *page, int head_dim, const float *q, const float *, float *y,
                std::ptrdiff_t y_stride) {
    score_int4_page<Isa, heads>(kind, page, head_dim, q, y, y_stride);
}
template <class Isa, class Type, int heads>
void score_page(Int4Sparse24Kind kind, const std::byte *page, int head_dim, const float *q, const float *, float *y,
                std::ptrdiff_t y_stride) {
    score_int4_page<Isa, heads>(kind, page, head_dim, q, y, y_stride);
}

template <class Isa, class Type, int heads>
void weigh_page(Int4DenseKind kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                float *, float *out) {
    weigh_int4_page<Isa, heads>(kind, page, head_dim, p, p_stride, out);
}
template <class Isa, class Type, int heads>
void weigh_page(Int4Sparse24Kind kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                float *, float *out) {
    weigh_int4_page<Isa, heads>(kind, page, head_dim, p, p_stride, out);
}

}  // namespace hsb::cpu

// 2:4 pages times the vectors of `heads` query heads:  y[head][lane] += sum over c of A[lane][c] * x[head][c].
//
// Values stay as they are stored; it is x that is permuted. A lane keeps 2 of each 4 values, and which 2 is one of 6
// patterns, so per group of 4 a table holds, for each pattern and slot, the x that meets the kept value: one conversion
// of the values serves all heads, then each head costs one table lookup and one FMA per slot.
#pragma once

#include "cpu/decode/prefetch.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

// Lanes that one pass over a 2:4 tile serves: two vectors a head, so that the accumulators of 4 heads fit in 16
// registers (8 heads in 32).
template <class Isa>
constexpr int kPassLanes = 2 * Isa::width;

// One slot of one group: `values` are the 2 vectors of kept values, `codes` the patterns in their low 3 bits.
template <class Isa, class Type, int heads, int slot>
void multiply_slot(const std::uint16_t *values, const typename Isa::Word (&codes)[2], const float *tables,
                   typename Isa::Float (&sums)[heads][2]) {
    const typename Isa::Float a = Isa::load(values, Type{});
    const typename Isa::Float b = Isa::load(values + Isa::width, Type{});
    const typename Isa::Index at = Isa::template index<slot>(codes[0]);
    const typename Isa::Index bt = Isa::template index<slot>(codes[1]);
    for (int h = 0; h < heads; ++h) {
        sums[h][0] = Isa::fma(a, Isa::template lookup<slot>(tables + h * kTable, at), sums[h][0]);
        sums[h][1] = Isa::fma(b, Isa::template lookup<slot>(tables + h * kTable, bt), sums[h][1]);
    }
}

// On AVX-512 the loops over groups stay loops: unrolled in full they are 7 to 9% slower from memory. On AVX2, which
// passes over a tile twice, no difference was measured.
constexpr int kGroupUnroll = Isa::registers >= 32 ? 2 : kTileGroups;

// tables: [16 groups][heads][kTable] floats, y: [heads][y_stride] floats, 32 lanes of them.
template <class Isa, class Type, int heads>
void multiply_sparse_tile(const std::byte *tile, const float *tables, float *y, std::ptrdiff_t y_stride) {
    using Word = typename Isa::Word;
    constexpr int width = Isa::width;
    for (int lane = 0; lane < kTileLanes; lane += kPassLanes<Isa>) {
        const auto *low = reinterpret_cast<const std::uint32_t *>(tile) + lane;
        const auto *high = reinterpret_cast<const std::uint32_t *>(tile + kHighPatterns);
        const auto *values = reinterpret_cast<const std::uint16_t *>(tile + kPatternBytes) + lane;
        const std::byte *ahead = tile + kAhead * Sparse24Kind::tile_bytes;
        typename Isa::Float sums[heads][2];
        Word codes[2];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < 2; ++v) sums[h][v] = Isa::load(y + h * y_stride + lane + v * width);
        for (int v = 0; v < 2; ++v) codes[v] = Isa::load(low + v * width);
        if (lane == 0)
            for (std::size_t byte = 0; byte < kPatternBytes; byte += kCacheLine) prefetch(ahead + byte);
        const auto group = [&](int g) __attribute__((always_inline)) {
            const float *table = tables + g * heads * kTable;
            const std::uint16_t *value = values + g * 2 * kTileLanes;
            if (lane == 0) {
                prefetch(ahead + kPatternBytes + 2 * g * kCacheLine);
                prefetch(ahead + kPatternBytes + (2 * g + 1) * kCacheLine);
            }
            multiply_slot<Isa, Type, heads, 0>(value, codes, table, sums);
            multiply_slot<Isa, Type, heads, 1>(value + kTileLanes, codes, table, sums);
            for (int v = 0; v < 2; ++v) codes[v] = Isa::shift_right(codes[v], 3);
        };
#pragma GCC unroll kGroupUnroll
        for (int g = 0; g < 10; ++g) group(g);
        for (int v = 0; v < 2; ++v) {  // groups 10 to 14 are in high[], 16 bits a lane
            const int at = lane + v * width;
            codes[v] = Isa::shift_right(Isa::load(high + at % 16), at / 16 * 16);
        }
#pragma GCC unroll kGroupUnroll
        for (int g = 10; g < 15; ++g) group(g);
        for (int v = 0; v < 2; ++v)  // bits 0..1 from low[], bit 2 from high[]: it stands at bit 0 after five shifts
            codes[v] = Isa::bit_or(Isa::shift_right(Isa::load(low + v * width), 30), Isa::shift_left(codes[v], 2));
        group(15);
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < 2; ++v) Isa::store(y + h * y_stride + lane + v * width, sums[h][v]);
    }
}

// tables [groups][heads][kTable] of x [heads][x_stride].
template <class Isa, int heads>
void make_tables(const float *x, std::ptrdiff_t x_stride, int groups, float *tables) {
    for (int g = 0; g < groups; ++g)
        for (int h = 0; h < heads; ++h) Isa::pattern_table(x + h * x_stride + 4 * g, tables + (g * heads + h) * kTable);
}

// What score_page reads of q [heads][head_dim]: heads * query_floats(head_dim).
template <class Isa, int heads>
void make_query_tables(Sparse24Kind, const float *q, int head_dim, float *tables) {
    make_tables<Isa, heads>(q, head_dim, head_dim / 4, tables);
}

// y[head][token] += q . k, q by its tables: y [heads][y_stride].
template <class Isa, class Type, int heads>
void score_page(Sparse24Kind, const std::byte *page, int head_dim, const float *, const float *tables, float *y,
                std::ptrdiff_t y_stride) {
    const int parts = head_dim / kTileSteps;  // tiles side by side along head_dim
    for (int tile = 0; tile < 2 * parts; ++tile)
        multiply_sparse_tile<Isa, Type, heads>(page + tile * Sparse24Kind::tile_bytes,
                                               tables + tile % parts * kTileGroups * heads * kTable,
                                               y + tile / parts * kTileLanes, y_stride);
}

// out[head][dim] += p . v: p [heads][p_stride], out [heads][head_dim]; tables: heads * weight_floats() of scratch.
template <class Isa, class Type, int heads>
void weigh_page(Sparse24Kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                float *tables, float *out) {
    make_tables<Isa, heads>(p, p_stride, kTileGroups, tables);
    for (int tile = 0; tile < head_dim / kTileLanes; ++tile)
        multiply_sparse_tile<Isa, Type, heads>(page + tile * Sparse24Kind::tile_bytes, tables, out + tile * kTileLanes,
                                               head_dim);
}

}  // namespace hsb::cpu

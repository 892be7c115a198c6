// One tile of a page (cpu/page.h) times the vectors of `heads` query heads:
//
//   y[head][lane] += sum over c of A[lane][c] * x[head][c]          32 lanes, 64 steps of c
//
// Values stay as they are stored; it is x that is permuted. A lane of a 2:4 tile keeps 2 of each 4 values, and which
// 2 is one of 6 patterns, so per group of 4 a table holds, for each pattern and slot, the x that meets the kept
// value: one conversion of the values serves all heads, then each head costs one table lookup and one FMA per slot.
#pragma once

#include "cpu/page.h"
#include "cpu/simd/isa.h"

namespace hsb::cpu {

constexpr int kCacheLine = 64;
constexpr int kTable = 16;  // floats of the table of one group: [8 * slot + pattern]

// Lanes that one pass over a 2:4 tile serves: two vectors a head, so that the accumulators of 4 heads fit in 16
// registers (8 heads in 32).
template <class Isa>
constexpr int kPassLanes = 2 * Isa::width;

// Query heads that one pass over a page serves.
template <class Isa>
constexpr int kMaxHeads = Isa::registers >= 32 ? 8 : 4;

// Tiles that the software prefetch runs ahead, into L2. Pages of a kind follow each other in their pool, so what
// lies beyond this page is what this unit, or the next, reads next; beyond a pool a prefetch does nothing. Into L1
// it measured slower than none at all: L1's few miss buffers then wait for memory, and loads queue behind them.
// Always inline: GCC takes a function that only prefetches for one without effect, and may drop calls of it.
constexpr std::size_t kAhead = 4;
[[gnu::always_inline]] inline void prefetch(const std::byte *line) { __builtin_prefetch(line, 0, 2); }

// Two tiles whose lanes follow each other and whose steps are the same: y is 64 lanes wide. 32 registers hold 4
// vectors a head, which halves the broadcasts of x per FMA: 11% less time than with 2.
// x: [heads][x_stride] floats, y: [heads][y_stride] floats; the second tile is tile_stride bytes on.
template <class Isa, class Type, int heads>
void multiply_dense_tiles(const std::byte *tile, std::size_t tile_stride, const float *x, std::ptrdiff_t x_stride,
                          float *y, std::ptrdiff_t y_stride) {
    constexpr int width = Isa::width;
    constexpr int vectors = Isa::registers >= 32 && heads <= 4 ? 4 : 2;
    for (int lane = 0; lane < 2 * kTileLanes; lane += vectors * width) {
        const std::uint16_t *values[vectors];
        for (int v = 0; v < vectors; ++v) {
            const int at = lane + v * width;
            values[v] = reinterpret_cast<const std::uint16_t *>(tile + at / kTileLanes * tile_stride) + at % kTileLanes;
        }
        typename Isa::Float sums[heads][vectors];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::load(y + h * y_stride + lane + v * width);
#pragma GCC unroll 4
        for (int c = 0; c < kTileSteps; ++c) {
            typename Isa::Float a[vectors];
            for (int v = 0; v < vectors; ++v) {
                const std::uint16_t *value = values[v] + c * kTileLanes;
                if ((lane + v * width) % kTileLanes == 0)
                    prefetch(reinterpret_cast<const std::byte *>(value) + kAhead * kDenseTileBytes);
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
        const std::byte *ahead = tile + kAhead * kSparseTileBytes;
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

// Calls body(Heads<n>{}, first head) for the chunks in which a group of query heads is served.
template <int n>
struct Heads {
    static constexpr int value = n;
};
template <class Isa, class Body>
void for_each_chunk(int group, Body &&body) {
    for (int first = 0; first < group;) {
        const int left = group - first;
        if (kMaxHeads<Isa> >= 8 && left >= 8) {
            body(Heads<kMaxHeads<Isa> >= 8 ? 8 : 4>{}, first);
            first += 8;
        } else if (left >= 4) {
            body(Heads<4>{}, first);
            first += 4;
        } else {
            if (left == 3) body(Heads<3>{}, first);
            if (left == 2) body(Heads<2>{}, first);
            if (left == 1) body(Heads<1>{}, first);
            first = group;
        }
    }
}

}  // namespace hsb::cpu

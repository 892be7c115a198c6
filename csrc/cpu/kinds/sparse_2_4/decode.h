// 2:4 pages times the vectors of `heads` query heads:  y[head][lane] += sum over c of A[lane][c] * x[head][c].
//
// Values stay as they are stored; it is x that is permuted. A lane keeps 2 of each 4 values, and which 2 is one of 6
// patterns, so per group of 4 a table holds, for each pattern and slot, the x that meets the kept value: one conversion
// of the values serves all heads, then each head costs one table lookup and one FMA per slot.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/decode/prefetch.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

// Lanes that one pass over a 2:4 tile serves: two vectors a head, so that the accumulators of 4 heads fit in 16
// registers (8 heads in 32).
template <class Isa>
constexpr int kPassLanes = 2 * Isa::width;

// On AVX-512 the loops over groups stay loops: unrolled in full they are no faster from L2, and were 7 to 9% slower
// from memory. On AVX2, which passes over a tile twice, no difference was measured.
constexpr int kGroupUnroll = Isa::registers >= 32 ? 5 : kTileGroups;

// Value: what a tile's values are stored as.
template <class Value>
[[gnu::always_inline]] inline void prefetch_patterns(const std::byte *tile) {
    const std::byte *ahead = tile + kAhead * Sparse24Kind::tile_bytes_of(sizeof(Value));
    for (std::size_t byte = 0; byte < kPatternBytes; byte += kCacheLine) prefetch(ahead + byte);
}
template <class Value>
[[gnu::always_inline]] inline void prefetch_group(const std::byte *tile, int g) {
    constexpr int kGroupBytes = 2 * kTileLanes * static_cast<int>(sizeof(Value));  // whole cache lines
    const std::byte *ahead =
        tile + kAhead * Sparse24Kind::tile_bytes_of(sizeof(Value)) + kPatternBytes + g * kGroupBytes;
    for (int byte = 0; byte < kGroupBytes; byte += kCacheLine) prefetch(ahead + byte);
}

// How a loop over groups is made: a loop of numbers, or, of kernels that shift by them, all of it, of constants.
struct InLoops {
    template <int first, int last, class Next>
    [[gnu::always_inline]] static void walk(Next &&next) {
#pragma GCC unroll kGroupUnroll
        for (int g = first; g < last; ++g) next(g);
    }
};
struct InFull {
    template <int first, int last, class Next>
    [[gnu::always_inline]] static void walk(Next &&next) {
        each<first>(next, std::make_integer_sequence<int, last - first>{});
    }

private:
    template <int first, class Next, int... g>
    [[gnu::always_inline]] static void each(Next &next, std::integer_sequence<int, g...>) {
        (next(std::integral_constant<int, first + g>{}), ...);
    }
};

// Calls group(g, codes) for the groups of a tile in turn, with the patterns of two vectors of lanes, from `lane` on,
// in the low 3 bits of `codes`. order(words) is called on what is loaded, to put lanes into another order.
template <class Isa, class Loops = InLoops, class Order, class Group>
[[gnu::always_inline]] inline void for_each_group(const std::byte *tile, int lane, Order &&order, Group &&group) {
    using Word = typename Isa::Word;
    constexpr int width = Isa::width;
    const auto *low = reinterpret_cast<const std::uint32_t *>(tile) + lane;
    const auto *high = reinterpret_cast<const std::uint32_t *>(tile + kHighPatterns);
    Word codes[2], last[2];
    const auto next = [&](auto g) __attribute__((always_inline)) {
        group(g, codes);
        for (int v = 0; v < 2; ++v) codes[v] = Isa::shift_right(codes[v], 3);
    };
    for (int v = 0; v < 2; ++v) codes[v] = Isa::load(low + v * width);
    order(codes);
    Loops::template walk<0, 10>(next);
    for (int v = 0; v < 2; ++v) {  // groups 10 to 14 are in high[], 16 bits a lane
        const int at = lane + v * width;
        codes[v] = Isa::shift_right(Isa::load(high + at % 16), at / 16 * 16);
    }
    order(codes);
    Loops::template walk<10, 15>(next);
    for (int v = 0; v < 2; ++v) last[v] = Isa::shift_right(Isa::load(low + v * width), 30);
    order(last);
    for (int v = 0; v < 2; ++v)  // bits 0..1 from low[], bit 2 from high[]: it stands at bit 0 after five shifts
        codes[v] = Isa::bit_or(last[v], Isa::shift_left(codes[v], 2));
    group(std::integral_constant<int, 15>{}, codes);
}

// One slot of one group: `values` are the 2 vectors of kept values, `codes` the patterns in their low 3 bits.
template <class Isa, class Type, int heads, int slot>
void multiply_slot(const typename Type::Value *values, const typename Isa::Word (&codes)[2], const float *tables,
                   typename Isa::Float (&sums)[heads][2]) {
    const typename Isa::Float a = Isa::load(values, Type{});
    const typename Isa::Float b = Isa::load(values + Isa::width, Type{});
    const typename Isa::Index at = Isa::template index<slot>(codes[0]);
    const typename Isa::Index bt = Isa::template index<slot>(codes[1]);
    for (int h = 0; h < heads; ++h) {
        const typename Isa::Table table = Isa::template table<slot>(tables + h * kTable);
        sums[h][0] = Isa::fma(a, Isa::lookup(table, at), sums[h][0]);
        sums[h][1] = Isa::fma(b, Isa::lookup(table, bt), sums[h][1]);
    }
}

// tables: [16 groups][heads][kTable] floats, y: [heads][y_stride] floats, 32 lanes of them.
template <class Isa, class Type, int heads>
void multiply_sparse_tile(const std::byte *tile, const float *tables, float *y, std::ptrdiff_t y_stride) {
    using Value = typename Type::Value;
    constexpr int width = Isa::width;
    for (int lane = 0; lane < kTileLanes; lane += kPassLanes<Isa>) {
        const auto *values = reinterpret_cast<const Value *>(tile + kPatternBytes) + lane;
        typename Isa::Float sums[heads][2];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < 2; ++v) sums[h][v] = Isa::load(y + h * y_stride + lane + v * width);
        if (lane == 0) prefetch_patterns<Value>(tile);
        const auto as_stored = [](typename Isa::Word(&)[2]) {};
        for_each_group<Isa>(tile, lane, as_stored, [&](int g, const auto &codes) __attribute__((always_inline)) {
            const float *table = tables + g * heads * kTable;
            const Value *value = values + g * 2 * kTileLanes;
            if (lane == 0) prefetch_group<Value>(tile, g);
            multiply_slot<Isa, Type, heads, 0>(value, codes, table, sums);
            multiply_slot<Isa, Type, heads, 1>(value + kTileLanes, codes, table, sums);
        });
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < 2; ++v) Isa::store(y + h * y_stride + lane + v * width, sums[h][v]);
    }
}

// The same where values are bf16 and the processor multiplies pairs of them: both slots of a lane are one 32-bit word,
// tables are of pairs, and a group costs each head one lookup and one dot product instead of two of each. What x has
// beyond bf16 is a second part of x, of tables and of these: parts is 1 where it has nothing (queries of bf16), else
// 2, which leaves 2^-17 of it at most.
template <class Isa, int parts, int heads>
void multiply_paired_tile(const std::byte *tile, const float *tables, float *y, std::ptrdiff_t y_stride) {
    static_assert(kPassLanes<Isa> == kTileLanes, "one pass");
    const auto *values = reinterpret_cast<const std::uint16_t *>(tile + kPatternBytes);
    typename Isa::Float sums[heads][2];
    for (int h = 0; h < heads; ++h)
        for (int v = 0; v < 2; ++v) sums[h][v] = Isa::zero();
    prefetch_patterns<std::uint16_t>(tile);
    const auto as_pairs = [](typename Isa::Word(&codes)[2]) { Isa::order_as_pairs(codes); };
    for_each_group<Isa>(tile, 0, as_pairs, [&](int g, const auto &codes) __attribute__((always_inline)) {
        const float *table = tables + g * heads * kTable;
        const std::uint16_t *value = values + g * 2 * kTileLanes;
        prefetch_group<std::uint16_t>(tile, g);
        typename Isa::Word pairs[2];
        Isa::pair(value, value + kTileLanes, pairs);
        typename Isa::Index index[parts][2];
        for (int v = 0; v < 2; ++v) {
            // A table of one part has it twice, so that what stands above a code does not matter.
            index[0][v] = parts == 1 ? codes[v] : Isa::template index<0>(codes[v]);
            if constexpr (parts == 2) index[1][v] = Isa::template index<1>(codes[v]);
        }
        for (int h = 0; h < heads; ++h) {
            const auto of_head = Isa::pair_table(table + h * kTable);
            for (int part = 0; part < parts; ++part)
                for (int v = 0; v < 2; ++v)
                    sums[h][v] = Isa::dot(pairs[v], Isa::lookup_pair(of_head, index[part][v]), sums[h][v]);
        }
    });
    for (int h = 0; h < heads; ++h) {
        Isa::order_as_lanes(sums[h]);
        for (int v = 0; v < 2; ++v) {
            float *to = y + h * y_stride + v * Isa::width;
            Isa::store(to, Isa::add(Isa::load(to), sums[h][v]));
        }
    }
}

// Decode's x: queries, which have the type of the values, or probabilities, which are floats.
enum class Factor { query, probability };
constexpr int pair_parts(Factor x) { return x == Factor::query ? 1 : 2; }

template <class Isa, class Type, Factor x, int heads>
void multiply_tile(const std::byte *tile, const float *tables, float *y, std::ptrdiff_t y_stride) {
    if constexpr (Isa::template dots_pairs<Type>)
        multiply_paired_tile<Isa, pair_parts(x), heads>(tile, tables, y, y_stride);
    else if (Isa::in_halves())
        multiply_sparse_tile<typename Isa::Half, Type, heads>(tile, tables, y, y_stride);
    else
        multiply_sparse_tile<Isa, Type, heads>(tile, tables, y, y_stride);
}

// tables [groups][heads][kTable] of x [heads][x_stride].
template <class Isa, class Type, Factor factor, int heads>
void make_tables(const float *x, std::ptrdiff_t x_stride, int groups, float *tables) {
    for (int g = 0; g < groups; g += 4, x += 16, tables += 4 * heads * kTable)
        if constexpr (Isa::template dots_pairs<Type>)
            Isa::template pair_tables<pair_parts(factor), heads>(x, x_stride, tables);
        else
            Isa::template pattern_tables<heads>(x, x_stride, tables);
}

// What score_page reads of q [heads][head_dim]: heads * query_floats(head_dim).
template <class Isa, class Type, int heads>
void make_query_tables(Sparse24Kind, const float *q, int head_dim, float *tables) {
    make_tables<Isa, Type, Factor::query, heads>(q, head_dim, head_dim / 4, tables);
}

// y[head][token] += q . k, q by its tables: y [heads][y_stride].
template <class Isa, class Type, int heads>
void score_page(Sparse24Kind, const std::byte *page, int head_dim, const float *, const float *tables, float *y,
                std::ptrdiff_t y_stride) {
    constexpr std::size_t kTileBytes = Sparse24Kind::tile_bytes_of(sizeof(typename Type::Value));
    const int parts = head_dim / kTileSteps;  // tiles side by side along head_dim
    for (int tile = 0; tile < 2 * parts; ++tile)
        multiply_tile<Isa, Type, Factor::query, heads>(page + tile * kTileBytes,
                                                       tables + tile % parts * kTileGroups * heads * kTable,
                                                       y + tile / parts * kTileLanes, y_stride);
}

// out[head][dim] += p . v: p [heads][p_stride], out [heads][head_dim]; tables: heads * weight_floats() of scratch.
template <class Isa, class Type, int heads>
void weigh_page(Sparse24Kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                float *tables, float *out) {
    constexpr std::size_t kTileBytes = Sparse24Kind::tile_bytes_of(sizeof(typename Type::Value));
    make_tables<Isa, Type, Factor::probability, heads>(p, p_stride, kTileGroups, tables);
    for (int tile = 0; tile < head_dim / kTileLanes; ++tile)
        multiply_tile<Isa, Type, Factor::probability, heads>(page + tile * kTileBytes, tables, out + tile * kTileLanes,
                                                             head_dim);
}

}  // namespace hsb::cpu

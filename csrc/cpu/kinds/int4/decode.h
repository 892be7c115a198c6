// Pages of int4 times the vectors of `heads` query heads, in whole numbers: levels are such, and so is x, of 16 bits, once
// it has taken in the scales, which belong to steps. Products and sums of a tile are exact; what is lost is what x is rounded
// by, 2^-16 of the largest of 64.
//
// A lane of 32 bits has two steps of a dense tile, or what a 2:4 group keeps, and one instruction multiplies both. Of 2:4
// it is x that is permuted, as in ../sparse_2_4/decode.h, pair by pair.
#pragma once

#include <utility>

#include "../sparse_2_4/decode.h"
#include "scales.h"

namespace hsb::cpu {

constexpr int kMostRows = 2;  // of scales in a page
constexpr float kLargestWhole = 32767.0f;
constexpr float kLeastOfWhole = 1e-33f;  // what is largest counts as this at least: kLargestWhole / it is finite

// x of `heads` query heads, times the scales of its steps: in units of each head's own.
template <int heads>
struct WholeX {
    alignas(64) std::int16_t x[heads][kTileSteps];
    float unit[heads];
};

// x [heads][x_stride] times row `row` of a page's scales.
template <class Isa, int heads>
void make_whole(const std::byte *page, int row, const float *x, std::ptrdiff_t x_stride, WholeX<heads> &whole) {
    constexpr int kVectors = kTileSteps / Isa::width;
    alignas(64) float scale[kTileSteps];
    int4_scales<Isa>(page, row, scale);
    for (int h = 0; h < heads; ++h) {
        typename Isa::Float scaled[kVectors];
        auto most = Isa::set(0u);
        for (int v = 0; v < kVectors; ++v) {
            scaled[v] = Isa::mul(Isa::load(x + h * x_stride + v * Isa::width), Isa::load(scale + v * Isa::width));
            // Magnitudes as bits, of which NaN is the largest: then it is the unit's, too.
            most = Isa::max(most, Isa::bit_and(Isa::bits(scaled[v]), Isa::set(0x7fffffffu)));
        }
        const float found = float_of(Isa::largest(most)), largest = found < kLeastOfWhole ? kLeastOfWhole : found;
        const auto factor = Isa::set(kLargestWhole / largest);
        for (int v = 0; v < kVectors; v += 2)
            Isa::store(whole.x[h] + v * Isa::width, Isa::mul(scaled[v], factor), Isa::mul(scaled[v + 1], factor));
        whole.unit[h] = largest * (kInt4Level / kLargestWhole);
    }
}

// Asks for a share of a page that lies two pages on, scales included, which lie between pages' tiles.
constexpr int kPagesAhead = 2;
template <class Kind>
void prefetch_share(const std::byte *page, int head_dim, int share, int shares) {
    const std::int64_t bytes = Kind::page_bytes(head_dim) / shares;
    const std::byte *ahead = page + kPagesAhead * Kind::page_bytes(head_dim) + share * bytes;
    for (std::int64_t at = 0; at < bytes; at += kCacheLine) prefetch(ahead + at);
}

// y[h][...] += sums, of `vectors` vectors from there on.
template <class Isa, int heads, int vectors>
[[gnu::always_inline]] inline void add_whole(const typename Isa::Word (&sums)[heads][vectors], const float *unit,
                                             float *y, std::ptrdiff_t y_stride) {
    for (int h = 0; h < heads; ++h)
        for (int v = 0; v < vectors; ++v) {
            float *to = y + h * y_stride + v * Isa::width;
            Isa::store(to, Isa::fma(Isa::converted(sums[h][v]), Isa::set(unit[h]), Isa::load(to)));
        }
}

// Two dense tiles, whose lanes follow each other: y [heads][y_stride], of 64 lanes.
template <class Isa, int heads>
void multiply_whole_dense(const std::byte *first, const std::byte *second, const WholeX<heads> &x, float *y,
                          std::ptrdiff_t y_stride) {
    using Word = typename Isa::Word;
    constexpr int width = Isa::width;
    constexpr int vectors = Isa::registers >= 32 && heads <= 4 ? 4 : 2;
    for (int lane = 0; lane < 2 * kTileLanes; lane += vectors * width) {
        const std::uint32_t *words[vectors];
        Word sums[heads][vectors];
        for (int v = 0; v < vectors; ++v) {
            const int at = lane + v * width;
            words[v] = reinterpret_cast<const std::uint32_t *>(at < kTileLanes ? first : second) + at % kTileLanes;
            for (int h = 0; h < heads; ++h) sums[h][v] = Isa::set(0u);
        }
        for (int eighth = 0; eighth < kTileSteps / kWordDigits; ++eighth) {
            Word digits[vectors];
            for (int v = 0; v < vectors; ++v) digits[v] = Isa::load(words[v] + eighth * kTileLanes);
            const auto pair = [&](auto j) __attribute__((always_inline)) {
                Word levels[vectors];
                for (int v = 0; v < vectors; ++v) levels[v] = Isa::template levels<decltype(j)::value>(digits[v]);
                for (int h = 0; h < heads; ++h) {
                    std::uint32_t both;
                    std::memcpy(&both, x.x[h] + eighth * kWordDigits + 2 * j, sizeof both);
                    const Word factor = Isa::set(both);
                    for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::dot_whole(levels[v], factor, sums[h][v]);
                }
            };
            pair(std::integral_constant<int, 0>{});
            pair(std::integral_constant<int, 1>{});
            pair(std::integral_constant<int, 2>{});
            pair(std::integral_constant<int, 3>{});
        }
        add_whole<Isa, heads>(sums, x.unit, y + lane, y_stride);
    }
}

// A 2:4 tile.
template <class Isa, int heads>
void multiply_whole_sparse(const std::byte *tile, const WholeX<heads> &x, float *y, std::ptrdiff_t y_stride) {
    using Word = typename Isa::Word;
    constexpr int width = Isa::width;
    constexpr int kAtOnce = Isa::registers >= 32 ? 2 : 1;  // groups, for which a table is made
    for (int lane = 0; lane < kTileLanes; lane += kPassLanes<Isa>) {
        const auto *words = reinterpret_cast<const std::uint32_t *>(tile + kPatternBytes) + lane;
        Word sums[heads][2], levels[kAtOnce][2];
        typename Isa::Index index[kAtOnce][2];
        for (int h = 0; h < heads; ++h)
            for (int v = 0; v < 2; ++v) sums[h][v] = Isa::set(0u);
        const auto as_stored = [](Word(&)[2]) {};
        const auto multiply = [&](auto group, const auto &codes) __attribute__((always_inline)) {
            constexpr int g = decltype(group)::value, at = g % kAtOnce;
            for (int v = 0; v < 2; ++v) {
                const Word digits = Isa::load(words + g / kHalfDigits * kTileLanes + v * width);
                levels[at][v] = Isa::template levels<g % kHalfDigits>(digits);
                index[at][v] = Isa::template index<g % 2>(codes[v]);
            }
            if (at != kAtOnce - 1) return;
            for (int h = 0; h < heads; ++h) {
                const auto table = Isa::template whole_table<g>(x.x[h]);
                for (int i = 0; i < kAtOnce; ++i)
                    for (int v = 0; v < 2; ++v)
                        sums[h][v] = Isa::dot_whole(levels[i][v], Isa::lookup_whole(table, index[i][v]), sums[h][v]);
            }
        };
        for_each_group<Isa, InFull>(tile, lane, as_stored, multiply);
        add_whole<Isa, heads>(sums, x.unit, y + lane, y_stride);
    }
}

// Two tiles whose steps, and so x, are the same, and whose lanes follow each other.
template <class Isa, int heads>
void multiply_int4_tiles(Int4DenseKind, const std::byte *first, const std::byte *second, const WholeX<heads> &x,
                         float *y, std::ptrdiff_t y_stride) {
    multiply_whole_dense<Isa, heads>(first, second, x, y, y_stride);
}
template <class Isa, int heads>
void multiply_int4_tiles(Int4Sparse24Kind, const std::byte *first, const std::byte *second, const WholeX<heads> &x,
                         float *y, std::ptrdiff_t y_stride) {
    for (const std::byte *tile : {first, second}) {
        multiply_whole_sparse<Isa, heads>(tile, x, y + (tile == second) * kTileLanes, y_stride);
    }
}

template <class Isa, int heads, class Kind>
void score_int4_page(Kind kind, const std::byte *page, int head_dim, const float *q, float *y,
                     std::ptrdiff_t y_stride) {
    const std::byte *tile = page + int4_scale_bytes(head_dim);
    const int parts = head_dim / kTileSteps;  // tiles side by side along head_dim
    WholeX<heads> x[kMostRows];               // of all at once: each takes long, but not the processor
    for (int part = 0; part < parts; ++part) make_whole<Isa>(page, part, q + part * kTileSteps, head_dim, x[part]);
    for (int part = 0; part < parts; ++part, tile += Kind::tile_bytes) {
        prefetch_share<Kind>(page, head_dim, part, parts);
        multiply_int4_tiles<Isa>(kind, tile, tile + parts * Kind::tile_bytes, x[part], y, y_stride);
    }
}

template <class Isa, int heads, class Kind>
void weigh_int4_page(Kind kind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride,
                     float *out) {
    const std::byte *tile = page + int4_scale_bytes(head_dim);
    const int rows = head_dim / (2 * kTileLanes);
    WholeX<heads> x[kMostRows];
    for (int row = 0; row < rows; ++row) make_whole<Isa>(page, row, p, p_stride, x[row]);
    for (int row = 0; row < rows; ++row, tile += 2 * Kind::tile_bytes) {
        prefetch_share<Kind>(page, head_dim, row, rows);
        multiply_int4_tiles<Isa>(kind, tile, tile + Kind::tile_bytes, x[row], out + row * 2 * kTileLanes, head_dim);
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

// Pages (cpu/page.h) to the operand A of prefill's products (products.h). Done once per page and unit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/page.h"
#include "cpu/page_pool.h"
#include "products.h"

namespace hsb::cpu::prefill {

// Kept positions of a pattern code, by comparisons rather than a table, so that loops over lanes vectorise.
constexpr std::uint32_t lower_position(std::uint32_t code) { return (code >= 3) + (code >= 5); }
constexpr std::uint32_t upper_position(std::uint32_t code) { return code + 1 - 2 * (code >= 3) - (code >= 5); }

constexpr bool positions_are_those_of_page() {
    for (std::uint32_t code = 0; code < kPatterns; ++code)
        if (lower_position(code) != kPattern[code][0] || upper_position(code) != kPattern[code][1]) return false;
    return true;
}
static_assert(positions_are_those_of_page(), "must say what kPattern says");

template <class Isa, class Type>
void unpack_dense(const std::byte *page, int rows, int steps, float *out) {
    constexpr int kRows = Tile<Isa>::dense_rows;
    const auto *value = reinterpret_cast<const std::uint16_t *>(page);
    for (int lane = 0; lane < rows; lane += kTileLanes)
        for (int first = 0; first < steps; first += kTileSteps)
            for (int c = first; c < first + kTileSteps; ++c, value += kTileLanes) {
                float wide[kTileLanes];
                for (int l = 0; l < kTileLanes; l += Isa::width) Isa::store(wide + l, Isa::load(value + l, Type{}));
                for (int l = 0; l < kTileLanes; l += kRows)
                    std::memcpy(out + ((lane + l) / kRows * steps + c) * kRows, wide + l, kRows * sizeof(float));
            }
}

// The pattern words of a tile, so that each group's codes are `word >> shift & 7` of one array.
struct PatternWords {
    std::uint32_t low[kTileLanes];   // groups 0..9
    std::uint32_t high[kTileLanes];  // groups 10..14
    std::uint32_t last[kTileLanes];  // group 15
};

template <class Isa>
void read_patterns(const std::byte *tile, PatternWords &words) {
    std::uint32_t halves[kTileLanes / 2];
    std::memcpy(words.low, tile, sizeof words.low);
    std::memcpy(halves, tile + kHighPatterns, sizeof halves);
    for (int l = 0; l < kTileLanes / 2; ++l) {
        words.high[l] = halves[l] & 0xffff;
        words.high[l + kTileLanes / 2] = halves[l] >> 16;
    }
    for (int l = 0; l < kTileLanes; ++l) words.last[l] = words.low[l] >> 30 | words.high[l] >> 15 << 2;
}

// One tile: rows [row, row + 32) and groups [first, first + 16) of `out`, which has `groups` groups a row.
template <class Isa, class Type>
void unpack_sparse_tile(const std::byte *tile, int row, int first, int groups, QuadGroup *out) {
    PatternWords words;
    read_patterns<Isa>(tile, words);
    const auto *value = reinterpret_cast<const std::uint16_t *>(tile + kPatternBytes);
    for (int g = 0; g < kTileGroups; ++g) {
        const std::uint32_t *word = g < 10 ? words.low : g < 15 ? words.high : words.last;
        const int shift = g < 10 ? 3 * g : g < 15 ? 3 * (g - 10) : 0;
        const std::uint32_t base = 4 * static_cast<std::uint32_t>(first + g) * Tile<Isa>::row_bytes;
        std::uint16_t offset[2][kTileLanes];
        float wide[2][kTileLanes];
        for (int l = 0; l < kTileLanes; ++l) {
            const std::uint32_t code = word[l] >> shift & 7;
            offset[0][l] = static_cast<std::uint16_t>(base + lower_position(code) * Tile<Isa>::row_bytes);
            offset[1][l] = static_cast<std::uint16_t>(base + upper_position(code) * Tile<Isa>::row_bytes);
        }
        for (int slot = 0; slot < 2; ++slot, value += kTileLanes)
            for (int l = 0; l < kTileLanes; l += Isa::width) Isa::store(wide[slot] + l, Isa::load(value + l, Type{}));
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
void unpack_sparse(const std::byte *page, int rows, int steps, QuadGroup *out) {
    static_assert(128 * Tile<Isa>::row_bytes <= 0x10000, "offsets are 16 bits");
    for (int row = 0; row < rows; row += kTileLanes)
        for (int first = 0; first < steps; first += kTileSteps, page += kSparseTileBytes)
            unpack_sparse_tile<Isa, Type>(page, row, first / 4, steps / 4, out);
}

// Bytes that either kind of page takes, unpacked.
constexpr std::size_t unpacked_bytes(int head_dim) { return kBlock * head_dim * sizeof(float); }
static_assert(sizeof(QuadGroup) <= kQuad * 4 * sizeof(float), "a 2:4 page unpacks into no more than a dense one");

// Asks for part `part` of `parts` of a page, to be in L2 by the time it is unpacked.
inline void prefetch(const StoredPage &page, int part, int parts) {
    constexpr std::int64_t kLine = 64;
    const std::int64_t lines = page.bytes / kLine;
    for (std::int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line)
        __builtin_prefetch(page.data + line * kLine, 0, 2);
}

template <class Isa, class Type>
Matrix unpack(const StoredPage &page, int rows, int steps, std::byte *out) {
    switch (page.kind) {
    case HSB_SPARSE_2_4: unpack_sparse<Isa, Type>(page.data, rows, steps, reinterpret_cast<QuadGroup *>(out)); break;
    case HSB_DENSE: unpack_dense<Isa, Type>(page.data, rows, steps, reinterpret_cast<float *>(out)); break;
    }
    return {rows, steps, page.kind, out};
}

}  // namespace hsb::cpu::prefill

// What a 2:4 tile keeps, in whole numbers: for kernels that unpack.
#pragma once

#include <cstring>

#include "page.h"

namespace hsb::cpu {

// Kept positions of a pattern code, by comparisons rather than a table, so that loops over lanes vectorise.
constexpr std::uint32_t lower_position(std::uint32_t code) { return (code >= 3) + (code >= 5); }
constexpr std::uint32_t upper_position(std::uint32_t code) { return code + 1 - 2 * (code >= 3) - (code >= 5); }

constexpr bool positions_are_those_of_page() {
    for (std::uint32_t code = 0; code < kPatterns; ++code)
        if (lower_position(code) != kPattern[code][0] || upper_position(code) != kPattern[code][1]) return false;
    return true;
}
static_assert(positions_are_those_of_page(), "must say what kPattern says");

// The pattern words of a tile, so that each group's codes are `word >> shift & 7` of one array.
template <class Isa>  // so that each instruction set has its own positions()
struct PatternWords {
    std::uint32_t low[kTileLanes];   // groups 0..9
    std::uint32_t high[kTileLanes];  // groups 10..14
    std::uint32_t last[kTileLanes];  // group 15

    // Which of four the slots of a group keep, of each lane.
    void positions(int g, std::uint32_t (&position)[2][kTileLanes]) const {
        const std::uint32_t *word = g < 10 ? low : g < 15 ? high : last;
        const int shift = g < 10 ? 3 * g : g < 15 ? 3 * (g - 10) : 0;
        for (int l = 0; l < kTileLanes; ++l) {
            const std::uint32_t code = word[l] >> shift & 7;
            position[0][l] = lower_position(code);
            position[1][l] = upper_position(code);
        }
    }
};

template <class Isa>
void read_patterns(const std::byte *tile, PatternWords<Isa> &words) {
    std::uint32_t halves[kTileLanes / 2];
    std::memcpy(words.low, tile, sizeof words.low);
    std::memcpy(halves, tile + kHighPatterns, sizeof halves);
    for (int l = 0; l < kTileLanes / 2; ++l) {
        words.high[l] = halves[l] & 0xffff;
        words.high[l + kTileLanes / 2] = halves[l] >> 16;
    }
    for (int l = 0; l < kTileLanes; ++l) words.last[l] = words.low[l] >> 30 | words.high[l] >> 15 << 2;
}

}  // namespace hsb::cpu

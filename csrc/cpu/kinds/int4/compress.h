// Packs pages of int4, of 16-bit pages of the same blocks: those say what is kept.
#pragma once

#include <algorithm>

#include "../sparse_2_4/patterns.h"
#include "cpu/simd/isa.h"
#include "page.h"

namespace hsb::cpu {

constexpr float kInt4Largest = 7.5f;  // scales that the largest value is
constexpr float kLargestScale = 65504.0f;

// The scale of values of which the largest magnitude has these bits, and the digit of a value, in two's complement.
inline std::uint16_t int4_scale(std::uint32_t largest) {
    const float exact = float_of(largest) / kInt4Largest;
    return from_float(exact < kLargestScale ? exact : kLargestScale, Int4::Scale{});
}
inline std::uint32_t int4_digit(float x, float scale) {
    const float levels = scale > 0.0f ? __builtin_fabsf(x) / scale : 0.0f;
    const auto whole = static_cast<std::int32_t>(levels < 7.0f ? levels : 7.0f);
    return static_cast<std::uint32_t>(x < 0.0f ? ~whole : whole) & 15;
}

// The rows of a tile of 32 lanes, each lane's value and the step that it is of: of a dense tile a row is a step, of a 2:4 tile
// a slot of a group.
template <class Isa, class Kind>
struct Int4Rows {
    static constexpr int kRows = Kind::prunes ? 2 * kTileGroups : kTileSteps;
    static constexpr int kRowsAtOnce = Kind::prunes ? 2 : 1;  // of the same steps
    static constexpr int kStepsAtOnce = Kind::prunes ? 4 : 1;

    float value[kRows][kTileLanes];
    std::uint32_t step[kRows][kTileLanes];

    // In units: of its step's, or of its lane's.
    template <class Type>
    void read(const std::byte *tile, const float *inverse, bool by_step) {
        const auto *stored = reinterpret_cast<const std::uint16_t *>(tile + Kind::values_at);
        read_steps(tile);
        for (int r = 0; r < kRows; ++r) {
            float *const row = value[r];
            for (int l = 0; l < kTileLanes; l += Isa::width)
                Isa::store(row + l, Isa::load(stored + r * kTileLanes + l, Type{}));
            if (by_step)
                for (int l = 0; l < kTileLanes; ++l) row[l] *= inverse[step[r][l]];
            else
                for (int l = 0; l < kTileLanes; ++l) row[l] *= inverse[l];
        }
    }

    // Raises, lane by lane, the bits of the largest magnitude of step first + i, which are ordered like numbers.
    void raise(int first, int i, std::uint32_t *most) const {
        const int row = first / kStepsAtOnce * kRowsAtOnce;
        for (int r = row; r < row + kRowsAtOnce; ++r)
            raise_lanes(value[r], step[r], static_cast<std::uint32_t>(first + i), most);
    }

    void write(const float *scale, std::byte *tile) const {
        std::uint32_t words[kRows / kWordDigits][kTileLanes] = {};
        for (int r = 0; r < kRows; ++r) {
            // Rows 2 j and 2 j + 1 of a word are its halves' digits j, of dense tiles and of 2:4 ones.
            const int at = 16 * (r % 2) + r % kWordDigits / 2 * 4;
            for (int l = 0; l < kTileLanes; ++l)
                words[r / kWordDigits][l] |= int4_digit(value[r][l], scale[step[r][l]]) << at;
        }
        std::memcpy(tile, words, sizeof words);
    }

private:
    // By itself, for amid other loops GCC does not vectorise it.
    [[gnu::noinline]] static void raise_lanes(const float *__restrict row, const std::uint32_t *__restrict steps,
                                              std::uint32_t at, std::uint32_t *__restrict most) {
        for (int l = 0; l < kTileLanes; ++l) {
            const std::uint32_t magnitude = steps[l] == at ? bits_of(row[l]) & 0x7fffffff : 0;
            most[l] = magnitude > most[l] ? magnitude : most[l];
        }
    }

    void read_steps(const std::byte *tile) {
        if constexpr (Kind::prunes) {
            PatternWords<Isa> words;
            read_patterns<Isa>(tile, words);
            for (int g = 0; g < kTileGroups; ++g) {
                std::uint32_t position[2][kTileLanes];
                words.positions(g, position);
                for (int slot = 0; slot < 2; ++slot)
                    for (int l = 0; l < kTileLanes; ++l)
                        step[2 * g + slot][l] = static_cast<std::uint32_t>(4 * g) + position[slot][l];
            }
        } else {
            for (int r = 0; r < kRows; ++r) std::fill_n(step[r], kTileLanes, static_cast<std::uint32_t>(r));
        }
    }
};

// A page of one of values of Type, as they are stored. `inverse`: of the units of the channels, in the page's order of them.
template <class Isa, class Type, class Kind>
void quantise_page(Kind, const std::byte *page, const float *inverse, int operand, int head_dim, std::byte *out) {
    using Stored = typename Kind::Stored;
    using Rows = Int4Rows<Isa, Kind>;
    const bool is_key = operand == HSB_KEY;
    const int parts = head_dim / kTileSteps;
    auto *scales = reinterpret_cast<std::uint16_t *>(out);
    for (int row = 0; row < parts; ++row, scales += kTileSteps) {
        // Two tiles, whose steps have the same scales: K's of a part of the channels, V's of 64 channels.
        const int tiles[2] = {is_key ? row : 2 * row, is_key ? row + parts : 2 * row + 1};
        Rows rows[2];
        for (int i = 0; i < 2; ++i)
            rows[i].template read<Type>(page + tiles[i] * Stored::tile_bytes,
                                        inverse + (is_key ? row * kTileSteps : tiles[i] * kTileLanes), is_key);
        float scale[kTileSteps];
        for (int first = 0; first < kTileSteps; first += Rows::kStepsAtOnce)
            for (int i = 0; i < Rows::kStepsAtOnce; ++i) {
                std::uint32_t bits[kTileLanes] = {}, largest = 0;
                for (const Rows &tile : rows) tile.raise(first, i, bits);
                for (int l = 0; l < kTileLanes; ++l) largest = bits[l] > largest ? bits[l] : largest;
                scales[first + i] = int4_scale(largest);
                scale[first + i] = to_float(scales[first + i], Int4::Scale{});
            }
        for (int i = 0; i < 2; ++i) {
            std::byte *to = out + int4_scale_bytes(head_dim) + tiles[i] * Kind::tile_bytes;
            std::memcpy(to, page + tiles[i] * Stored::tile_bytes, Kind::values_at);
            rows[i].write(scale, to + Kind::values_at);
        }
    }
}

}  // namespace hsb::cpu

// 4 floats in an array: plain C++ for any processor, which compilers turn into what SIMD they have.
#pragma once

#include <algorithm>
#include <cmath>

#include "half.h"

namespace hsb::cpu {

struct Portable {
    static constexpr int isa = HSB_ISA_PORTABLE;
    static constexpr int width = 4;
    static constexpr int registers = 16;
    template <class Type>
    static constexpr bool dots_pairs = false;  // what these are: avx512_bf16.h
    using Half = Portable;
    static constexpr bool in_halves() { return false; }
    struct Float {
        float lane[width];
    };
    struct Word {
        std::uint32_t lane[width];
    };

    template <class Result, class Function>
    static Result each(Function &&function) {
        Result y;
        for (int i = 0; i < width; ++i) y.lane[i] = function(i);
        return y;
    }

    static Float zero() { return set(0.0f); }
    static Float set(float x) {
        return each<Float>([&](int) { return x; });
    }
    static Float load(const float *p) {
        return each<Float>([&](int i) { return p[i]; });
    }
    static void store(float *p, Float x) { std::memcpy(p, x.lane, sizeof x.lane); }
    static Float add(Float a, Float b) {
        return each<Float>([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    static Float sub(Float a, Float b) {
        return each<Float>([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    static Float mul(Float a, Float b) {
        return each<Float>([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    // Of a NaN and a number, min and max give the second.
    static Float min(Float a, Float b) {
        return each<Float>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    static Float max(Float a, Float b) {
        return each<Float>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    // a * b + c, rounded twice: std::fma is a slow call without the instruction.
    static Float fma(Float a, Float b, Float c) {
        return each<Float>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
    }
    static float sum(Float x) { return (x.lane[0] + x.lane[1]) + (x.lane[2] + x.lane[3]); }
    static float largest(Float x) { return std::max(std::max(x.lane[0], x.lane[1]), std::max(x.lane[2], x.lane[3])); }

    template <class Type>
    static Float load(const std::uint16_t *p, Type type) {
        return each<Float>([&](int i) { return to_float(p[i], type); });
    }

    static Float load(const std::uint8_t *p, E4m3 type) {
        return each<Float>([&](int i) { return to_float(p[i], type); });
    }

    // Rounded to nearest even.
    template <class Type>
    static void store(std::uint16_t *p, Float x, Type type) {
        for (int i = 0; i < width; ++i) p[i] = from_float(x.lane[i], type);
    }

    // p[0..3] in every group of four lanes; splat<i> of that is p[i] in every lane.
    static Float load_quad(const float *p) { return load(p); }
    template <int i>
    static Float splat(Float quad) {
        return set(quad.lane[i]);
    }

    static Word load(const std::uint32_t *p) {
        return each<Word>([&](int i) { return p[i]; });
    }
    static Word set(std::uint32_t x) {
        return each<Word>([&](int) { return x; });
    }
    static Word bit_and(Word a, Word b) {
        return each<Word>([&](int i) { return a.lane[i] & b.lane[i]; });
    }
    static Word bit_or(Word a, Word b) {
        return each<Word>([&](int i) { return a.lane[i] | b.lane[i]; });
    }
    static Word shift_left(Word a, unsigned n) {
        return each<Word>([&](int i) { return a.lane[i] << n; });
    }
    static Word shift_right(Word a, unsigned n) {
        return each<Word>([&](int i) { return a.lane[i] >> n; });
    }

    // Lookups of table[8 * slot + code], code being the low 3 bits of a lane.
    using Index = Word;
    template <int slot>
    static Index index(Word codes) {
        return bit_and(codes, set(7u));
    }
    using Table = const float *;
    template <int slot>
    static Table table(const float *table) {
        return table + 8 * slot;
    }
    static Float lookup(Table table, Index index) {
        return each<Float>([&](int i) { return table[index.lane[i]]; });
    }

    // The tables of 4 groups, as lookup reads them: tables[i][h][8 * slot + code] = x[h][4 i + the position that the
    // slot keeps], x [heads][x_stride].
    template <int heads>
    static void pattern_tables(const float *x, std::ptrdiff_t x_stride, float *tables) {
        constexpr int positions[16] = {0, 0, 0, 1, 1, 2, 0, 0, 1, 2, 3, 2, 3, 3, 0, 0};
        for (int i = 0; i < 4; ++i)
            for (int h = 0; h < heads; ++h, tables += 16)
                for (int j = 0; j < 16; ++j) tables[j] = x[h * x_stride + 4 * i + positions[j]];
    }

    // Whole numbers of 16 bits, two to a lane of 32. sum + a0 b0 + a1 b1:
    static Word dot_whole(Word a, Word b, Word sum) {
        return each<Word>([&](int i) {
            const std::int32_t low = lower(a.lane[i]) * lower(b.lane[i]), high = upper(a.lane[i]) * upper(b.lane[i]);
            return sum.lane[i] + static_cast<std::uint32_t>(low) + static_cast<std::uint32_t>(high);
        });
    }
    // Of digits of 4 bits, those at bits 4 `at` of each 16 become levels, 2 digit + 1.
    template <int at>
    static Word levels(Word digits) {
        return each<Word>([&](int i) {
            const std::int32_t low = lower(digits.lane[i] << (12 - 4 * at)) >> 11 | 1;
            const std::int32_t high = upper(digits.lane[i] << (12 - 4 * at)) >> 11 | 1;
            return (static_cast<std::uint32_t>(low) & 0xffff) | static_cast<std::uint32_t>(high) << 16;
        });
    }
    // Which halves of 16 bits of each lane have bit `bit`; of such a half a word's own, or 0, or that of one of two words.
    using Select = Word;
    template <int bit>
    static Select select(Word mask) {
        return each<Select>([&](int i) { return (mask.lane[i] >> bit & 0x10001u) * 0xffffu; });
    }
    static Word keep(Select select, Word x) { return bit_and(select, x); }
    static Word choose(Select select, Word x, Word otherwise) {
        return each<Word>([&](int i) { return (select.lane[i] & x.lane[i]) | (~select.lane[i] & otherwise.lane[i]); });
    }
    static Float converted(Word x) {
        return each<Float>([&](int i) { return static_cast<float>(static_cast<std::int32_t>(x.lane[i])); });
    }
    static Word bits(Float x) {
        Word y;
        std::memcpy(y.lane, x.lane, sizeof y.lane);
        return y;
    }
    static Word max(Word a, Word b) {
        return each<Word>([&](int i) { return std::max(a.lane[i], b.lane[i]); });
    }
    static std::uint32_t largest(Word x) { return *std::max_element(x.lane, x.lane + width); }
    // Two vectors, rounded to nearest even, saturating.
    static void store(std::int16_t *p, Float a, Float b) {
        for (int i = 0; i < 2 * width; ++i) {
            const float x = i < width ? a.lane[i] : b.lane[i - width];
            p[i] = static_cast<std::int16_t>(std::lrintf(std::max(-32768.0f, std::min(32767.0f, x))));
        }
    }
    // Lookups of pairs of such x [64], as of floats, in the four of a group, by code.
    using WholeTable = const std::int16_t *;
    template <int group>
    static WholeTable whole_table(const std::int16_t *x) {
        return x + 4 * group;
    }
    static Word lookup_whole(WholeTable table, Index index) {
        constexpr int kept[16] = {0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0, 0, 0, 0};
        return each<Word>([&](int i) {
            const int *at = kept + 2 * index.lane[i];
            return static_cast<std::uint16_t>(table[at[0]]) |
                   static_cast<std::uint32_t>(static_cast<std::uint16_t>(table[at[1]])) << 16;
        });
    }

    // Within each 4 lanes: lane i of x[k] becomes lane k of x[i].
    static void transpose(Float (&x)[4]) {
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < i; ++k) std::swap(x[i].lane[k], x[k].lane[i]);
    }

    // Lane i is the sum of x[i]'s lanes, for 4 vectors.
    static Float sums(const Float *x) {
        return each<Float>([&](int i) { return sum(x[i]); });
    }

    // 4 lanes of which mask's are the next values in turn and the others 0.
    template <class Type>
    static Float expand(const std::uint16_t *values, std::uint32_t mask, Type type) {
        return each<Float>([&](int i) { return mask >> i & 1 ? to_float(*values++, type) : 0.0f; });
    }

    // The same of a mask that keeps half of the lanes, as 2:4 does.
    template <class Value, class Type>
    static Float expand_half(const Value *values, std::uint32_t mask, Type type) {
        return each<Float>([&](int i) { return mask >> i & 1 ? to_float(*values++, type) : 0.0f; });
    }

    // 2^x for x <= 0; results below 2^-126 become 0.
    static Float exp2(Float x) {
        return each<Float>([&](int i) { return x.lane[i] < -126.0f ? 0.0f : std::exp2(x.lane[i]); });
    }

private:
    static std::int32_t lower(std::uint32_t x) { return static_cast<std::int16_t>(x & 0xffff); }
    static std::int32_t upper(std::uint32_t x) { return static_cast<std::int16_t>(x >> 16); }
};

}  // namespace hsb::cpu

// 8 floats in a ymm register. AVX2, FMA and F16C (Haswell and Zen upwards).
#pragma once

#include <immintrin.h>

#include "half.h"

namespace hsb::cpu {

// Byte shuffles that spread packed values of 16 or of 8 bits over 8 lanes, by the 8 bits of the lanes that get one.
struct ExpandTable {
    alignas(16) std::uint8_t order[256][16];
    alignas(16) std::uint8_t order_of_bytes[256][8];
};
constexpr ExpandTable make_expand_table() {
    ExpandTable table{};
    for (int mask = 0; mask < 256; ++mask)
        for (int lane = 0, next = 0; lane < 8; ++lane) {
            const bool kept = mask >> lane & 1;
            table.order[mask][2 * lane] = static_cast<std::uint8_t>(kept ? 2 * next : 0x80);
            table.order[mask][2 * lane + 1] = static_cast<std::uint8_t>(kept ? 2 * next + 1 : 0x80);
            table.order_of_bytes[mask][lane] = static_cast<std::uint8_t>(kept ? next : 0x80);
            next += kept;
        }
    return table;
}
constexpr ExpandTable kExpand = make_expand_table();

struct Avx2 {
    static constexpr int isa = HSB_ISA_AVX2;
    static constexpr int width = 8;
    static constexpr int registers = 16;
    template <class Type>
    static constexpr bool dots_pairs = false;  // what these are: avx512_bf16.h
    using Half = Avx2;
    static constexpr bool in_halves() { return false; }
    using Float = __m256;
    using Word = __m256i;  // 8 u32

    static Float zero() { return _mm256_setzero_ps(); }
    static Float set(float x) { return _mm256_set1_ps(x); }
    static Float load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, Float x) { _mm256_storeu_ps(p, x); }
    static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    // Of a NaN and a number, min and max give the second.
    static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
    static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }  // a * b + c
    static float sum(Float x) {
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }
    static float largest(Float x) {
        __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_max_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
    }

    static Float widened(__m128i x, Fp16) { return _mm256_cvtph_ps(x); }
    static Float widened(__m128i x, Bf16) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
    }
    static Float widened(__m128i x, WideFp16) { return mul(widened(x, Fp16{}), set(1 / WideFp16::unit)); }
    template <class Type>
    static Float load(const std::uint16_t *p, Type type) {
        return widened(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)), type);
    }

    static Float load(const std::uint8_t *p, E4m3) {
        return widened_e4m3(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
    }
    static Float widened_e4m3(__m128i x) {
        const __m128i wide = _mm_cvtepi8_epi16(x);  // signs spread
        return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<short>(0xbfff))));
    }

    // Rounded to nearest even, as from_float does.
    static void store(std::uint16_t *p, Float x, Fp16) {
        const __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), half);
    }
    static void store(std::uint16_t *p, Float x, Bf16) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i y = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), half);
    }

    // p[0..3] in every group of four lanes; splat<i> of that is p[i] in every lane. One load, then shuffles, which
    // use neither a load port nor (mostly) an FMA port.
    static Float load_quad(const float *p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(p)); }
    template <int i>
    static Float splat(Float quad) {
        return _mm256_permute_ps(quad, i * 0x55);
    }

    static Word load(const std::uint32_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static Word set(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static Word bit_and(Word a, Word b) { return _mm256_and_si256(a, b); }
    static Word bit_or(Word a, Word b) { return _mm256_or_si256(a, b); }
    static Word shift_left(Word a, unsigned n) { return _mm256_slli_epi32(a, static_cast<int>(n)); }
    static Word shift_right(Word a, unsigned n) { return _mm256_srli_epi32(a, static_cast<int>(n)); }

    // Lookups of table[8 * slot + code]: vpermps reads only the low 3 bits of an index, so the codes need no mask.
    using Index = __m256i;
    template <int slot>
    static Index index(Word codes) {
        return codes;
    }
    using Table = Float;
    template <int slot>
    static Table table(const float *table) {
        return load(table + 8 * slot);
    }
    static Float lookup(Table table, Index index) { return _mm256_permutevar8x32_ps(table, index); }

    // The tables of 4 groups, as lookup reads them: tables[i][h][8 * slot + code] = x[h][4 i + the position that the
    // slot keeps], x [heads][x_stride].
    template <int heads>
    static void pattern_tables(const float *x, std::ptrdiff_t x_stride, float *tables) {
        for (int i = 0; i < 4; ++i)
            for (int h = 0; h < heads; ++h, tables += 16) {
                const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(x + h * x_stride + 4 * i));
                _mm256_storeu_ps(tables, _mm256_permutevar_ps(four, _mm256_setr_epi32(0, 0, 0, 1, 1, 2, 0, 0)));
                _mm256_storeu_ps(tables + 8, _mm256_permutevar_ps(four, _mm256_setr_epi32(1, 2, 3, 2, 3, 3, 0, 0)));
            }
    }

    // Whole numbers of 16 bits, two to a lane of 32. sum + a0 b0 + a1 b1:
    static Word dot_whole(Word a, Word b, Word sum) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
    // Of digits of 4 bits, those at bits 4 `at` of each 16 become levels, 2 digit + 1. What comes along in the last bit is
    // the next digit's, and that bit is 1.
    template <int at>
    static Word levels(Word digits) {
        if (at != 3) digits = _mm256_slli_epi16(digits, 12 - 4 * at);
        return _mm256_or_si256(_mm256_srai_epi16(digits, 11), _mm256_set1_epi16(1));
    }
    // Which halves of 16 bits of each lane have bit `bit`; of such a half a word's own, or 0, or that of one of two words.
    using Select = __m256i;
    template <int bit>
    static Select select(Word mask) {
        return _mm256_srai_epi16(_mm256_slli_epi16(mask, 15 - bit), 15);
    }
    static Word keep(Select select, Word x) { return _mm256_and_si256(select, x); }
    static Word choose(Select select, Word x, Word otherwise) { return _mm256_blendv_epi8(otherwise, x, select); }
    static Float converted(Word x) { return _mm256_cvtepi32_ps(x); }
    static Word bits(Float x) { return _mm256_castps_si256(x); }
    static Word max(Word a, Word b) { return _mm256_max_epu32(a, b); }
    static std::uint32_t largest(Word x) {
        __m128i y = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        y = _mm_max_epu32(y, _mm_unpackhi_epi64(y, y));
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(y, _mm_shuffle_epi32(y, 1))));
    }
    // Two vectors, rounded to nearest even, saturating.
    static void store(std::int16_t *p, Float a, Float b) {
        const __m256i y = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_permute4x64_epi64(y, 0xd8));
    }
    // Lookups of pairs of such x [64], as of floats, in the table of a group: [code] = what both slots keep. It is made where
    // it is used, which is less than to store it.
    using WholeTable = __m256i;
    template <int group>
    static WholeTable whole_table(const std::int16_t *x) {
        long long four;
        std::memcpy(&four, x + 4 * group, sizeof four);
        return _mm256_shuffle_epi8(_mm256_set1_epi64x(four),
                                   _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 4, 5, 0, 1, 6, 7, 2, 3, 4, 5,  //
                                                    2, 3, 6, 7, 4, 5, 6, 7, 0, 1, 0, 1, 0, 1, 0, 1));
    }
    static Word lookup_whole(WholeTable table, Index index) { return _mm256_permutevar8x32_epi32(table, index); }

    // Within each 4 lanes: lane i of x[k] becomes lane k of x[i].
    static void transpose(Float (&x)[4]) {
        const Float a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
        const Float c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
        x[0] = _mm256_shuffle_ps(a, c, 0x44);
        x[1] = _mm256_shuffle_ps(a, c, 0xee);
        x[2] = _mm256_shuffle_ps(b, d, 0x44);
        x[3] = _mm256_shuffle_ps(b, d, 0xee);
    }

    // Lane i is the sum of x[i]'s lanes, for 8 vectors.
    static Float sums(const Float *x) {
        const Float a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
        const Float b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
        return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }

    // 8 lanes of which mask's are the next values in turn and the others 0. Reads 8 values whatever the mask.
    template <class Type>
    static Float expand(const std::uint16_t *values, std::uint32_t mask, Type type) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(values));
        const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i *>(kExpand.order[mask]));
        return widened(_mm_shuffle_epi8(packed, order), type);
    }

    // The same of a mask that keeps half of the lanes, as 2:4 does: reads 4 values.
    template <class Type>
    static Float expand_half(const std::uint16_t *values, std::uint32_t mask, Type type) {
        const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(values));
        const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i *>(kExpand.order[mask]));
        return widened(_mm_shuffle_epi8(packed, order), type);
    }
    static Float expand_half(const std::uint8_t *values, std::uint32_t mask, E4m3) {
        std::int32_t packed;
        std::memcpy(&packed, values, sizeof packed);
        const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(kExpand.order_of_bytes[mask]));
        return widened_e4m3(_mm_shuffle_epi8(_mm_cvtsi32_si128(packed), order));
    }

    // 2^x for x <= 0, relative error about 2e-7; results below 2^-126 become 0.
    static Float exp2(Float x) {
        const Float normal = _mm256_cmp_ps(x, set(-126.0f), _CMP_GE_OQ);
        x = _mm256_max_ps(x, set(-126.0f));
        const Float whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Float f = sub(x, whole);
        Float y = set(1.535336188319500e-4f);
        y = fma(y, f, set(1.339887440266574e-3f));
        y = fma(y, f, set(9.618437357674640e-3f));
        y = fma(y, f, set(5.550332471162809e-2f));
        y = fma(y, f, set(2.402264791363012e-1f));
        y = fma(y, f, set(6.931472028550421e-1f));
        y = fma(y, f, set(1.0f));
        const __m256i power =
            _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
        return _mm256_and_ps(normal, mul(y, _mm256_castsi256_ps(power)));
    }
};

}  // namespace hsb::cpu

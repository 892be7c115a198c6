// 16 floats in a zmm register. AVX-512 F, BW, DQ, VL, VBMI2, VNNI (Ice Lake and Zen 4 upwards).
#pragma once

#include <immintrin.h>

#include "half.h"

namespace hsb::cpu {

// Where the tables of two of 8 groups have their numbers: dword 8 * odd + code is what a pattern keeps of group 2 i + odd.
struct WholePlaces {
    alignas(64) std::uint16_t place[32];
};
constexpr WholePlaces make_whole_places(int i) {
    constexpr int kept[16] = {0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0, 0, 0, 0};
    WholePlaces places{};
    for (int j = 0; j < 32; ++j) places.place[j] = static_cast<std::uint16_t>(8 * i + 4 * (j / 16) + kept[j % 16]);
    return places;
}
constexpr WholePlaces kWholePlaces[4] = {make_whole_places(0), make_whole_places(1), make_whole_places(2),
                                         make_whole_places(3)};

struct Avx512 {
    static constexpr int isa = HSB_ISA_AVX512;
    static constexpr int width = 16;
    static constexpr int registers = 32;
    template <class Type>
    static constexpr bool dots_pairs = false;  // what these are: avx512_bf16.h
    using Half = Avx512;
    static constexpr bool in_halves() { return false; }
    using Float = __m512;
    using Word = __m512i;  // 16 u32

    static Float zero() { return _mm512_setzero_ps(); }
    static Float set(float x) { return _mm512_set1_ps(x); }
    static Float load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, Float x) { _mm512_storeu_ps(p, x); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    // Of a NaN and a number, min and max give the second.
    static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
    static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
    static float sum(Float x) { return _mm512_reduce_add_ps(x); }
    static float largest(Float x) { return _mm512_reduce_max_ps(x); }

    static Float widened(__m256i x, Fp16) { return _mm512_cvtph_ps(x); }
    static Float widened(__m256i x, Bf16) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    static Float widened(__m256i x, WideFp16) { return mul(widened(x, Fp16{}), set(1 / WideFp16::unit)); }
    template <class Type>
    static Float load(const std::uint16_t *p, Type type) {
        return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)), type);
    }

    static Float load(const std::uint8_t *p, E4m3) {
        return widened_e4m3(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static Float widened_e4m3(__m128i x) {
        const __m256i wide = _mm256_cvtepi8_epi16(x);  // signs spread
        const __m256i half =
            _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
        return _mm512_cvtph_ps(half);
    }

    // Rounded to nearest even, as from_float does.
    static void store(std::uint16_t *p, Float x, Fp16) {
        const __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), half);
    }
    static void store(std::uint16_t *p, Float x, Bf16) {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
        const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
        const __m512i y = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16)));
    }

    // p[0..3] in every group of four lanes; splat<i> of that is p[i] in every lane. One load, then shuffles, which
    // use neither a load port nor (mostly) an FMA port.
    static Float load_quad(const float *p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
    template <int i>
    static Float splat(Float quad) {
        return _mm512_permute_ps(quad, i * 0x55);
    }

    static Word load(const std::uint32_t *p) { return _mm512_loadu_si512(p); }
    static Word set(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Word bit_and(Word a, Word b) { return _mm512_and_si512(a, b); }
    static Word bit_or(Word a, Word b) { return _mm512_or_si512(a, b); }
    static Word shift_left(Word a, unsigned n) { return _mm512_slli_epi32(a, n); }
    static Word shift_right(Word a, unsigned n) { return _mm512_srli_epi32(a, n); }

    // Lookups of table[8 * slot + code] in each lane, code being the low 3 bits of `codes`. Index<slot> is made once
    // and used for every query head: vpermps on the whole 16-entry table takes bit 3 as the slot.
    using Index = __m512i;
    template <int slot>
    static Index index(Word codes) {
        return slot == 0 ? bit_and(codes, set(7u)) : bit_or(codes, set(8u));
    }
    using Table = Float;
    template <int slot>
    static Table table(const float *table) {
        return in_register(load(table));
    }
    static Float lookup(Table table, Index index) { return _mm512_permutexvar_ps(index, table); }

    // The tables of 4 groups, as lookup reads them: tables[i][h][8 * slot + code] = x[h][4 i + the position that the
    // slot keeps], x [heads][x_stride]. Each from all of a vector: a broadcast of 4 would, on Zen 4, be one shuffle
    // more. They are stored in the order in which they are read, which is so soon that many are still on their way to
    // L1.
    template <int heads>
    static void pattern_tables(const float *x, std::ptrdiff_t x_stride, float *tables) {
        const __m512i positions = _mm512_setr_epi32(0, 0, 0, 1, 1, 2, 0, 0, 1, 2, 3, 2, 3, 3, 0, 0);
        Float values[heads];
        for (int h = 0; h < heads; ++h) values[h] = load(x + h * x_stride);
        for (unsigned i = 0; i < 4; ++i)
            for (int h = 0; h < heads; ++h, tables += 16)
                store(tables, _mm512_permutexvar_ps(_mm512_add_epi32(positions, set(4 * i)), values[h]));
    }

    // Keeps what was loaded from being loaded again: GCC makes it an operand of each instruction that uses it, and
    // loads of 64 bytes are one a cycle.
    static Float in_register(Float x) {
        asm("" : "+v"(x));
        return x;
    }

    // Whole numbers of 16 bits, two to a lane of 32. sum + a0 b0 + a1 b1:
    static Word dot_whole(Word a, Word b, Word sum) { return _mm512_dpwssd_epi32(sum, a, b); }
    // Of digits of 4 bits, those at bits 4 `at` of each 16 become levels, 2 digit + 1. What comes along in the last bit is
    // the next digit's, and that bit is 1.
    template <int at>
    static Word levels(Word digits) {
        if (at != 3) digits = _mm512_slli_epi16(digits, 12 - 4 * at);
        return _mm512_or_si512(_mm512_srai_epi16(digits, 11), _mm512_set1_epi16(1));
    }
    // Which halves of 16 bits of each lane have bit `bit`; of such a half a word's own, or 0, or that of one of two words.
    using Select = __mmask32;
    template <int bit>
    static Select select(Word mask) {
        return _mm512_test_epi16_mask(mask, _mm512_set1_epi16(static_cast<short>(1u << bit)));
    }
    static Word keep(Select select, Word x) { return _mm512_maskz_mov_epi16(select, x); }
    static Word choose(Select select, Word x, Word otherwise) { return _mm512_mask_mov_epi16(otherwise, select, x); }
    static Float converted(Word x) { return _mm512_cvtepi32_ps(x); }
    static Word bits(Float x) { return _mm512_castps_si512(x); }
    static Word max(Word a, Word b) { return _mm512_max_epu32(a, b); }
    static std::uint32_t largest(Word x) { return _mm512_reduce_max_epu32(x); }
    // Two vectors, rounded to nearest even, saturating. By one store, for it is read by one load, and soon.
    static void store(std::int16_t *p, Float a, Float b) {
        const __m512i y = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
        _mm512_storeu_si512(p, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), y));
    }
    // Lookups of pairs of such x [64], as of floats, in the table of two groups: [8 * odd + code] = what both slots of group
    // 2 i + odd keep. It is made where it is used, which is less than to store it.
    using WholeTable = __m512i;
    template <int group>
    static WholeTable whole_table(const std::int16_t *x) {
        const __m512i half = _mm512_loadu_si512(x + group / 8 * 32);
        return _mm512_permutexvar_epi16(_mm512_load_si512(kWholePlaces[group % 8 / 2].place), half);
    }
    static Word lookup_whole(WholeTable table, Index index) { return _mm512_permutexvar_epi32(index, table); }

    // Within each 4 lanes: lane i of x[k] becomes lane k of x[i].
    static void transpose(Float (&x)[4]) {
        const Float a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
        const Float c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
        x[0] = _mm512_shuffle_ps(a, c, 0x44);
        x[1] = _mm512_shuffle_ps(a, c, 0xee);
        x[2] = _mm512_shuffle_ps(b, d, 0x44);
        x[3] = _mm512_shuffle_ps(b, d, 0xee);
    }

    // Lane i is the sum of x[i]'s lanes, for 16 vectors: half the vectors and half the distance at each level.
    static Float sums(const Float *x) {
        Float four[4];
        for (int i = 0; i < 4; ++i) {
            const Float *y = x + 4 * i;
            const Float a = add(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
            const Float b = add(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
            four[i] = add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
        }
        const Float a = add(_mm512_shuffle_f32x4(four[0], four[1], 0x88), _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
        const Float b = add(_mm512_shuffle_f32x4(four[2], four[3], 0x88), _mm512_shuffle_f32x4(four[2], four[3], 0xdd));
        return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }

    // 16 lanes of which mask's are the next values in turn and the others 0. Reads 16 values whatever the mask.
    template <class Type>
    static Float expand(const std::uint16_t *values, std::uint32_t mask, Type type) {
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values));
        return widened(_mm256_maskz_expand_epi16(static_cast<__mmask16>(mask), packed), type);
    }

    // The same of a mask that keeps half of the lanes, as 2:4 does: reads 8 values.
    template <class Type>
    static Float expand_half(const std::uint16_t *values, std::uint32_t mask, Type type) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(values));
        return widened(_mm256_maskz_expand_epi16(static_cast<__mmask16>(mask), _mm256_castsi128_si256(packed)), type);
    }
    static Float expand_half(const std::uint8_t *values, std::uint32_t mask, E4m3) {
        const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(values));
        return widened_e4m3(_mm_maskz_expand_epi8(static_cast<__mmask16>(mask), packed));
    }

    // 2^x for x <= 0, relative error about 2e-7; results below 2^-126 become 0.
    static Float exp2(Float x) {
        x = _mm512_max_ps(x, set(-127.0f));
        const Float whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Float f = sub(x, whole);
        Float y = set(1.535336188319500e-4f);
        y = fma(y, f, set(1.339887440266574e-3f));
        y = fma(y, f, set(9.618437357674640e-3f));
        y = fma(y, f, set(5.550332471162809e-2f));
        y = fma(y, f, set(2.402264791363012e-1f));
        y = fma(y, f, set(6.931472028550421e-1f));
        y = fma(y, f, set(1.0f));
        return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, set(-126.0f), _CMP_GE_OQ), y, whole);
    }
};

}  // namespace hsb::cpu

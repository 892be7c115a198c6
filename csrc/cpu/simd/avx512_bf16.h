// AVX-512 with AVX512_BF16: the same, and dot products of pairs of bf16 (Cooper Lake, Sapphire Rapids, Zen 4 upwards).
#pragma once

#include "avx2.h"
#include "avx512.h"

namespace hsb::cpu {

// Places of pairs among 16 values of each of two parts: dword 8 * part + code is the pair that a pattern keeps of the
// first four.
struct PairPlaces {
    alignas(64) std::uint16_t place[32];
};
constexpr PairPlaces make_pair_places() {
    constexpr int kept[16] = {0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0, 0, 0, 0};
    PairPlaces places{};
    for (int i = 0; i < 32; ++i) places.place[i] = static_cast<std::uint16_t>(16 * (i / 16) + kept[i % 16]);
    return places;
}
constexpr PairPlaces kPairPlaces = make_pair_places();

// Half of its vectors: AVX2's instructions, and registers for twice as many.
struct Avx512Half : Avx2 {
    static constexpr int isa = HSB_ISA_AVX512_BF16;
    static constexpr int registers = 32;
};

struct Avx512Bf16 : Avx512 {
    static constexpr int isa = HSB_ISA_AVX512_BF16;
    template <class Type>
    static constexpr bool dots_pairs = kIsUpperHalf<Type>;  // whether dot() takes pairs of these

    // Where vectors of 64 bytes are worked on half by half (Zen 4), lookups are better done in halves: of 8 floats
    // they read 3 bits of an index, and need no mask.
    using Half = Avx512Half;
    static bool in_halves() { return works_in_halves; }

    // sum + a0 b0 + a1 b1 in each 32-bit lane. Products are exact, sums rounded to nearest even; what is subnormal
    // counts as 0, operands and results.
    static Float dot(Word a, Word b, Float sum) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }

    // Two rows of 32 values as pairs (a, b). Where the lanes then are is the instructions' own order, 4 by 4, which
    // run on more ports than those that could give another: 0, 2, 4, 6 in the first vector, 1, 3, 5, 7 in the second.
    static void pair(const std::uint16_t *a, const std::uint16_t *b, Word (&pairs)[2]) {
        const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
        pairs[0] = _mm512_unpacklo_epi16(x, y);
        pairs[1] = _mm512_unpackhi_epi16(x, y);
    }
    // 32 lanes into the order of pairs, and back.
    static void order_as_pairs(Word (&x)[2]) {
        const Word first = _mm512_shuffle_i32x4(x[0], x[1], 0x88);
        x[1] = _mm512_shuffle_i32x4(x[0], x[1], 0xdd);
        x[0] = first;
    }
    static void order_as_lanes(Float (&x)[2]) {
        const Word low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const Float first = _mm512_permutex2var_ps(x[0], low, x[1]);
        x[1] = _mm512_permutex2var_ps(x[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), x[1]);
        x[0] = first;
    }

    // Lookups of pairs, as of floats.
    using PairTable = Word;
    static PairTable pair_table(const float *table) {
        Word x = _mm512_loadu_si512(table);
        asm("" : "+v"(x));  // in_register()
        return x;
    }
    static Word lookup_pair(PairTable table, Index index) { return _mm512_permutexvar_epi32(index, table); }

    // As pattern_tables, of pairs of bf16 in 32 bits: tables[i][h][8 * part + code] = what both slots keep of a part
    // of x. Of one part, x rounded, there are two copies, so that of an index only its low 3 bits count; of two the
    // second is what was rounded off.
    template <int parts, int heads>
    static void pair_tables(const float *x, std::ptrdiff_t x_stride, float *tables) {
        __m512i values[heads];
        for (int h = 0; h < heads; ++h) {
            const Float whole = load(x + h * x_stride);
            const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(whole));
            __m256i low = high;
            if (parts == 2) {
                const __m512i rounded = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
                low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sub(whole, _mm512_castsi512_ps(rounded))));
            }
            values[h] = _mm512_inserti64x4(_mm512_castsi256_si512(high), low, 1);
        }
        const __m512i places = _mm512_load_si512(kPairPlaces.place);
        for (int i = 0; i < 4; ++i) {
            const __m512i at = _mm512_add_epi16(places, _mm512_set1_epi16(static_cast<short>(4 * i)));
            for (int h = 0; h < heads; ++h, tables += 16)
                _mm512_storeu_si512(tables, _mm512_permutexvar_epi16(at, values[h]));
        }
    }
};

}  // namespace hsb::cpu

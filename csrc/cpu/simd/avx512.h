// 16 floats in a zmm register. AVX-512 F, BW, DQ, VL, VBMI2 (Ice Lake and Zen 4 upwards).
#pragma once

#include <immintrin.h>

#include "half.h"

namespace hsb::cpu {

struct Avx512 {
    static constexpr int isa = HSB_ISA_AVX512;
    static constexpr int width = 16;
    static constexpr int registers = 32;
    using Float = __m512;
    using Word = __m512i;  // 16 u32

    static Float zero() { return _mm512_setzero_ps(); }
    static Float set(float x) { return _mm512_set1_ps(x); }
    static Float load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, Float x) { _mm512_storeu_ps(p, x); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
    static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
    static float sum(Float x) { return _mm512_reduce_add_ps(x); }
    static float largest(Float x) { return _mm512_reduce_max_ps(x); }

    static Float load(const std::uint16_t *p, Fp16) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static Float load(const std::uint16_t *p, Bf16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }

    static Word load(const std::uint32_t *p) { return _mm512_loadu_si512(p); }
    static Word set(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Word bit_and(Word a, Word b) { return _mm512_and_si512(a, b); }
    static Word bit_or(Word a, Word b) { return _mm512_or_si512(a, b); }
    static Word shift_left(Word a, unsigned n) { return _mm512_slli_epi32(a, n); }
    static Word shift_right(Word a, unsigned n) { return _mm512_srli_epi32(a, n); }

    // table[8 * slot + code] for each lane, code being the low 3 bits of `codes`. Index<slot> is made once and
    // used for every query head: vpermps on the whole 16-entry table takes bit 3 as the slot.
    using Index = __m512i;
    template <int slot>
    static Index index(Word codes) {
        return slot == 0 ? bit_and(codes, set(7u)) : bit_or(codes, set(8u));
    }
    template <int slot>
    static Float lookup(const float *table, Index index) {
        return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
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

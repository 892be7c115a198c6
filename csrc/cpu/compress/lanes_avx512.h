// 32 lanes of 16 bits in a zmm register.
#pragma once

#include "cpu/simd/avx512.h"

namespace hsb::cpu {

template <class Isa>
struct Lanes;

template <>
struct Lanes<Avx512> {
    static constexpr int width = 32;
    using Half = __m512i;
    using Flag = __m512i;
    using Mask = __mmask32;

    static Half zero() { return _mm512_setzero_si512(); }
    static Half set(std::uint16_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
    static Half load(const std::uint16_t *p) { return _mm512_loadu_si512(p); }
    static void store(std::uint16_t *p, Half x) { _mm512_storeu_si512(p, x); }
    static Half bit_and(Half a, Half b) { return _mm512_and_si512(a, b); }
    static Half min(Half a, Half b) { return _mm512_min_epu16(a, b); }
    static Half max(Half a, Half b) { return _mm512_max_epu16(a, b); }
    static Half sub(Half a, Half b) { return _mm512_sub_epi16(a, b); }
    static Half shift_right(Half a, unsigned n) { return _mm512_srli_epi16(a, n); }
    static Half select(Mask yes, Half a, Half b) { return _mm512_mask_mov_epi16(b, yes, a); }

    // Magnitudes are below 2^15, so the sign of their difference is their order.
    static Flag less(Half a, Half b) { return _mm512_sub_epi16(a, b); }
    // At least two of three; a name says which of them are taken inverted.
    static Flag majority(Flag a, Flag b, Flag c) { return _mm512_ternarylogic_epi64(a, b, c, 0xe8); }
    static Flag majority_n1(Flag a, Flag b, Flag c) { return _mm512_ternarylogic_epi64(a, b, c, 0x8e); }
    static Flag majority_n2(Flag a, Flag b, Flag c) { return _mm512_ternarylogic_epi64(a, b, c, 0x2b); }
    static Flag majority_n3(Flag a, Flag b, Flag c) { return _mm512_ternarylogic_epi64(a, b, c, 0x17); }
    static Mask mask(Flag a) { return _mm512_movepi16_mask(a); }
    // bits >> 1, with the flag as the new top bit.
    static Half shift_in(Half bits, Flag flag) {
        return _mm512_ternarylogic_epi64(_mm512_srli_epi16(bits, 1), flag, set(0x8000), 0xf8);
    }

    static std::uint16_t largest(Half x) {
        const __m256i y = _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
        return static_cast<std::uint16_t>(~smallest_of_8(_mm_xor_si128(
            _mm_max_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)), _mm_set1_epi16(-1))));
    }
    static std::uint16_t smallest(Half x) {
        const __m256i y = _mm256_min_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
        return smallest_of_8(_mm_min_epu16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
    }

    // y[j] = element j of each of `width` rows: row l's becomes lane l. Quarter q of a register holds rows 8q .. 8q+7,
    // so three rounds of unpacking within quarters make a transpose.
    static void transposed(const std::uint16_t *x, std::ptrdiff_t stride, Half (&y)[8]) {
        __m512i r[8], s[8];
        for (int j = 0; j < 8; ++j) {
            const std::uint16_t *row = x + j * stride;
            r[j] = _mm512_castsi128_si512(quarter(row));
            r[j] = _mm512_inserti32x4(r[j], quarter(row + 8 * stride), 1);
            r[j] = _mm512_inserti32x4(r[j], quarter(row + 16 * stride), 2);
            r[j] = _mm512_inserti32x4(r[j], quarter(row + 24 * stride), 3);
        }
        for (int j = 0; j < 4; ++j) {  // s[2j], s[2j+1]: rows 2j, 2j+1; elements 0..3, 4..7
            s[2 * j] = _mm512_unpacklo_epi16(r[2 * j], r[2 * j + 1]);
            s[2 * j + 1] = _mm512_unpackhi_epi16(r[2 * j], r[2 * j + 1]);
        }
        for (int j = 0; j < 2; ++j)  // r[4j+i]: rows 4j .. 4j+3, elements 2i, 2i+1
            for (int i = 0; i < 2; ++i) {
                r[4 * j + 2 * i] = _mm512_unpacklo_epi32(s[4 * j + i], s[4 * j + i + 2]);
                r[4 * j + 2 * i + 1] = _mm512_unpackhi_epi32(s[4 * j + i], s[4 * j + i + 2]);
            }
        for (int i = 0; i < 4; ++i) {
            y[2 * i] = _mm512_unpacklo_epi64(r[i], r[i + 4]);
            y[2 * i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 4]);
        }
    }

    // Elements j of the groups of 4 in 128 successive elements, in whatever order of lanes, the same in all y[j].
    static void grouped(const std::uint16_t *x, Half (&y)[4]) {
        const __m512i pairs =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        __m512i r[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm512_shuffle_epi8(load(x + i * width), pairs);
        const __m512i even[2] = {_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1])};
        const __m512i odd[2] = {_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3])};
        for (int i = 0; i < 2; ++i) {
            y[2 * i] = _mm512_unpacklo_epi64(even[i], odd[i]);
            y[2 * i + 1] = _mm512_unpackhi_epi64(even[i], odd[i]);
        }
    }

    template <class Type>
    struct Sum {
        __m512d part[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};

        void add(Half x) {
            add(Avx512::widened(_mm512_castsi512_si256(x), Type{}), part[0], part[1]);
            add(Avx512::widened(_mm512_extracti64x4_epi64(x, 1), Type{}), part[2], part[3]);
        }
        double total() const {
            const __m512d low = _mm512_add_pd(part[0], part[1]), high = _mm512_add_pd(part[2], part[3]);
            return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
        }

    private:
        static void add(__m512 x, __m512d &low, __m512d &high) {
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
        }
    };

    // Bit i: whether m[i] >= t, for 64 magnitudes.
    static std::uint64_t at_least(const Half (&m)[2], std::uint16_t t) {
        const Half bound = set(t);
        return static_cast<std::uint64_t>(_mm512_cmpge_epu16_mask(m[1], bound)) << 32 |
               _mm512_cmpge_epu16_mask(m[0], bound);
    }
    static int count_at_least(const Half (&m)[2], std::uint16_t t) {
        return static_cast<int>(_mm_popcnt_u64(at_least(m, t)));
    }

    // The `count` lowest set bits of `bits`.
    static std::uint64_t lowest(std::uint64_t bits, int count) {
        return _pdep_u64(_bzhi_u64(~std::uint64_t{0}, static_cast<unsigned>(count)), bits);
    }

    // Writes x[i] for the set bits i of 64 in ascending order, then zeros up to `padded` values. May write zeros
    // beyond them too, but nothing from `end` on.
    static void gather_bits(const std::uint16_t *x, std::uint64_t bits, std::uint16_t *out, int padded,
                            const std::uint16_t *end) {
        const auto low = static_cast<__mmask32>(bits), high = static_cast<__mmask32>(bits >> 32);
        const Half first = _mm512_maskz_compress_epi16(low, load(x));
        const Half second = _mm512_maskz_compress_epi16(high, load(x + width));
        const int kept = static_cast<int>(_mm_popcnt_u32(low));
        if (end - out >= 2 * width) {
            store(out + width, zero());
            store(out, first);
            store(out + kept, second);
        } else {
            store_some(out + width, zero(), padded - width);
            store_some(out, first, padded);
            store_some(out + kept, second, padded - kept);
        }
    }

private:
    static void store_some(std::uint16_t *p, Half x, int count) {
        const unsigned lanes = count < 0 ? 0 : count < width ? static_cast<unsigned>(count) : width;
        _mm512_mask_storeu_epi16(p, _bzhi_u32(~0u, lanes), x);
    }
    static __m128i quarter(const std::uint16_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
    static std::uint16_t smallest_of_8(__m128i x) {
        return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(x)));
    }
};

struct Avx512Bf16;  // the same lanes
template <>
struct Lanes<Avx512Bf16> : Lanes<Avx512> {};

}  // namespace hsb::cpu

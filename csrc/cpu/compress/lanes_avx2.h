// 16 lanes of 16 bits in a ymm register.
#pragma once

#include "cpu/simd/avx2.h"

namespace hsb::cpu {

template <class Isa>
struct Lanes;

template <>
struct Lanes<Avx2> {
    static constexpr int width = 16;
    using Half = __m256i;
    using Flag = __m256i;  // all bits of a lane alike, so that a Flag is a Mask too
    using Mask = __m256i;

    static Half zero() { return _mm256_setzero_si256(); }
    static Half set(std::uint16_t x) { return _mm256_set1_epi16(static_cast<short>(x)); }
    static Half load(const std::uint16_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static void store(std::uint16_t *p, Half x) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), x); }
    static Half bit_and(Half a, Half b) { return _mm256_and_si256(a, b); }
    static Half min(Half a, Half b) { return _mm256_min_epu16(a, b); }
    static Half max(Half a, Half b) { return _mm256_max_epu16(a, b); }
    static Half sub(Half a, Half b) { return _mm256_sub_epi16(a, b); }
    static Half shift_right(Half a, unsigned n) { return _mm256_srli_epi16(a, static_cast<int>(n)); }
    static Half select(Mask yes, Half a, Half b) { return _mm256_blendv_epi8(b, a, yes); }

    static Flag less(Half a, Half b) { return _mm256_cmpgt_epi16(b, a); }  // magnitudes are below 2^15
    // At least two of three; a name says which of them are taken inverted. Where a and b agree they decide.
    static Flag majority(Flag a, Flag b, Flag c) {
        return _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(_mm256_or_si256(a, b), c));
    }
    static Flag majority_n1(Flag a, Flag b, Flag c) {
        return _mm256_or_si256(_mm256_andnot_si256(a, b), _mm256_andnot_si256(_mm256_andnot_si256(b, a), c));
    }
    static Flag majority_n2(Flag a, Flag b, Flag c) {
        return _mm256_or_si256(_mm256_andnot_si256(a, inverse(b)), _mm256_andnot_si256(_mm256_and_si256(a, b), c));
    }
    static Flag majority_n3(Flag a, Flag b, Flag c) { return inverse(majority(a, b, c)); }
    static Mask mask(Flag a) { return a; }
    // bits >> 1, with the flag as the new top bit.
    static Half shift_in(Half bits, Flag flag) {
        return _mm256_or_si256(_mm256_srli_epi16(bits, 1), _mm256_and_si256(flag, set(0x8000)));
    }

    static std::uint16_t largest(Half x) { return static_cast<std::uint16_t>(~smallest(inverse(x))); }
    static std::uint16_t smallest(Half x) {
        const __m128i y = _mm_min_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(y)));
    }

    // y[j] = element j of each of `width` rows: row l's becomes lane l. Half q of a register holds rows 8q .. 8q+7,
    // so three rounds of unpacking within halves make a transpose.
    static void transposed(const std::uint16_t *x, std::ptrdiff_t stride, Half (&y)[8]) {
        __m256i r[8], s[8];
        for (int j = 0; j < 8; ++j) {
            const __m256i low = _mm256_castsi128_si256(eight(x + j * stride));
            r[j] = _mm256_inserti128_si256(low, eight(x + (j + 8) * stride), 1);
        }
        for (int j = 0; j < 4; ++j) {  // s[2j], s[2j+1]: rows 2j, 2j+1; elements 0..3, 4..7
            s[2 * j] = _mm256_unpacklo_epi16(r[2 * j], r[2 * j + 1]);
            s[2 * j + 1] = _mm256_unpackhi_epi16(r[2 * j], r[2 * j + 1]);
        }
        for (int j = 0; j < 2; ++j)  // r[4j+i]: rows 4j .. 4j+3, elements 2i, 2i+1
            for (int i = 0; i < 2; ++i) {
                r[4 * j + 2 * i] = _mm256_unpacklo_epi32(s[4 * j + i], s[4 * j + i + 2]);
                r[4 * j + 2 * i + 1] = _mm256_unpackhi_epi32(s[4 * j + i], s[4 * j + i + 2]);
            }
        for (int i = 0; i < 4; ++i) {
            y[2 * i] = _mm256_unpacklo_epi64(r[i], r[i + 4]);
            y[2 * i + 1] = _mm256_unpackhi_epi64(r[i], r[i + 4]);
        }
    }

    // Elements j of the groups of 4 in 64 successive elements, in whatever order of lanes, the same in all y[j].
    static void grouped(const std::uint16_t *x, Half (&y)[4]) {
        const __m256i pairs =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
        __m256i r[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm256_shuffle_epi8(load(x + i * width), pairs);
        const __m256i even[2] = {_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1])};
        const __m256i odd[2] = {_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3])};
        for (int i = 0; i < 2; ++i) {
            y[2 * i] = _mm256_unpacklo_epi64(even[i], odd[i]);
            y[2 * i + 1] = _mm256_unpackhi_epi64(even[i], odd[i]);
        }
    }

    template <class Type>
    struct Sum {
        __m256d part[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};

        void add(Half x) {
            add(Avx2::widened(_mm256_castsi256_si128(x), Type{}), part[0], part[1]);
            add(Avx2::widened(_mm256_extracti128_si256(x, 1), Type{}), part[2], part[3]);
        }
        double total() const {
            const __m256d y = _mm256_add_pd(_mm256_add_pd(part[0], part[1]), _mm256_add_pd(part[2], part[3]));
            const __m128d z = _mm_add_pd(_mm256_castpd256_pd128(y), _mm256_extractf128_pd(y, 1));
            return _mm_cvtsd_f64(_mm_add_sd(z, _mm_unpackhi_pd(z, z)));
        }

    private:
        static void add(__m256 x, __m256d &low, __m256d &high) {
            low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
            high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
        }
    };

    // Bit i: whether m[i] >= t, for 64 magnitudes. Packing interleaves quarters; the permutation puts them back.
    static std::uint64_t at_least(const Half (&m)[4], std::uint16_t t) {
        const std::uint64_t high = bytes_at_least<true>(m[2], m[3], t);
        return high << 32 | bytes_at_least<true>(m[0], m[1], t);
    }
    static int count_at_least(const Half (&m)[4], std::uint16_t t) {  // in any order
        const std::uint64_t high = bytes_at_least<false>(m[2], m[3], t);
        return static_cast<int>(_mm_popcnt_u64(high << 32 | bytes_at_least<false>(m[0], m[1], t)));
    }

    // The `count` lowest set bits of `bits`. A loop: pdep is microcode on the first Zens.
    static std::uint64_t lowest(std::uint64_t bits, int count) {
        std::uint64_t rest = bits;
        for (; count > 0 && rest; --count) rest = _blsr_u64(rest);
        return bits ^ rest;
    }

    // Writes x[i] for the set bits i of 64 in ascending order, then zeros up to `padded` values, and nothing beyond.
    static void gather_bits(const std::uint16_t *x, std::uint64_t bits, std::uint16_t *out, int padded,
                            const std::uint16_t *) {
        int kept = 0;
        for (; bits; bits = _blsr_u64(bits)) out[kept++] = x[_tzcnt_u64(bits)];
        while (kept < padded) out[kept++] = 0;
    }

private:
    static __m128i eight(const std::uint16_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
    static __m256i inverse(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi32(-1)); }
    template <bool ordered>
    static std::uint32_t bytes_at_least(Half low, Half high, std::uint16_t t) {
        const Half below = set(static_cast<std::uint16_t>(t - 1));  // t = 0: -1 as a signed number, below any magnitude
        __m256i yes = _mm256_packs_epi16(_mm256_cmpgt_epi16(low, below), _mm256_cmpgt_epi16(high, below));
        if (ordered) yes = _mm256_permute4x64_epi64(yes, 0xd8);
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(yes));
    }
};

}  // namespace hsb::cpu

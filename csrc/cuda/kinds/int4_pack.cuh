// What both kinds of int4 pages (int4_page.cuh) take to be packed (compress/pack.cuh): a block's scales, values as nibbles, and
// words that lanes put together. hsbench/cache/int4.py is the definition, met bit for bit.
//
// A nibble's magnitude is the floor of |x| / scale, 7 at most. x has 11 bits, and scale times a whole number up to 7 has 14: so
// x / scale is a whole number, or at least 2^-14 of itself below the next one. Hence no division: the floor of x times an
// inverse that is a little too large, by 2^-17, is the same.
//
// K's scales are of all its tokens: a CTA's four warps have the four strips of one block, and meet in `room`, of each warp:
//
//   codes     u8 [16 tokens][head_dim / 8 chunks]: two groups each, the kept positions in 4 bits, of 2:4 pages
//   maxima    u16 [head_dim], at byte 256
//
// V's scales are of 64 channels, which one warp has:
//
//   codes     u16 [64 rows][4 runs] of four groups each
//   inverses  f32 [4 runs][20], of 16 tokens each
#pragma once

#include <cstdint>

#include "cuda/compress/strip.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/unrolled.cuh"
#include "fp8_page.cuh"
#include "int4_page.cuh"

namespace hsb::cuda {

constexpr int kInt4RoomBytes = 832;  // of a warp

// Two scales, of the values whose largest magnitudes, in units of their channels' scales, are given.
struct Int4ScalePair {
    std::uint32_t bits;  // fp16
    float2 inverse;      // a little too large; just above 0 where the scale is 0, so that signs stay

    __device__ Int4ScalePair(float first, float second) {
        bits = ptx::fp16x2_saturated(scale_of(first), scale_of(second));
        const float2 scale = Element<OfE4m3>::unpack(bits);
        inverse = {inverse_of(scale.x), inverse_of(scale.y)};
    }

private:
    // largest / 7.5, rounded: a quotient from the rounded inverse, corrected by what it leaves, is the nearest, as long as
    // nothing underflows, where fp16 has 0 whatever it is.
    static __device__ float scale_of(float largest) {
        constexpr float kLargest = 7.5f, kInverse = 1.0f / kLargest;
        const float quotient = __fmul_rn(largest, kInverse);
        return __fmaf_rn(__fmaf_rn(-quotient, kLargest, largest), kInverse, quotient);
    }
    static __device__ float inverse_of(float scale) {
        constexpr float kTooLarge = 1.0f + 0x1p-17f, kTiny = 0x1p-100f;
        return scale > 0.0f ? __frcp_rn(scale) * kTooLarge : kTiny;
    }
};

// The floors of two quotients x / scale, each -8 to 7, in the low bytes of halves; x in units of its channel's scale. Each is added
// to 1280, where numbers of fp16 are whole ones and those of fp32 far finer: rounded down to the one and cut to the other is
// rounded down. So one instruction cuts two, and two more bring a pair into range, which fp32 would need for each.
constexpr float kInt4Zero = 1280.0f;
__device__ __forceinline__ std::uint32_t int4_floors(float low, float high) {
    return ptx::fp16x2_towards_zero(low, high);
}
__device__ __forceinline__ float int4_quotient(float x, float inverse) { return __fmaf_rd(x, inverse, kInt4Zero); }
__device__ __forceinline__ std::uint32_t int4_in_range(std::uint32_t floors) {
    constexpr std::uint32_t kLeast = 0x64f864f8u, kMost = 0x65076507u;  // 1280 - 8, 1280 + 7
    return ptx::fp16x2_between(floors, kLeast, kMost);
}

// What a row, i or i + 8 of a strip, has of a word: of steps -n - 1 and n of four values, in the low bytes of halves, its
// registers' first halves and then the second ones.
__device__ __forceinline__ std::uint32_t int4_half_word(std::uint32_t steps, bool below) {
    const std::uint32_t signs = ptx::permute_bytes<0xba98>(steps, steps),
                        next = ptx::permute_bytes<0xa98b>(steps, steps);
    const std::uint32_t word = ((steps ^ signs) & 0x07070707u) << 4 | (next & 0x80808080u);
    return below ? __funnelshift_l(word, word, 4) : word;
}
__device__ __forceinline__ std::uint32_t int4_half_word(std::uint32_t first, std::uint32_t second, bool below) {
    return int4_half_word(ptx::permute_bytes<0x6420>(int4_in_range(first), int4_in_range(second)), below);
}

// Of four values in two groups, in the low and in the high halves: those that stay, by the groups' codes at bit `place` of the
// halves.
__device__ __forceinline__ void int4_kept(std::uint32_t (&kept)[2], const std::uint32_t (&x)[4], std::uint32_t codes,
                                          int place) {
    const auto mask = [&](int bit) { return ptx::spread_signs(codes << (15 - place - bit)); };
    const auto select = [](std::uint32_t by, std::uint32_t a, std::uint32_t b) { return (a & by) | (b & ~by); };
    kept[0] = select(mask(1), x[2], select(mask(0), x[1], x[0]));
    kept[1] = select(mask(3), select(mask(2), x[3], x[2]), x[1]);
}

// The inverse of what 2:4 keeps, zeros elsewhere: value `i` of two groups, by the codes at bit `place` of the halves.
__device__ __forceinline__ std::uint32_t int4_spread(const std::uint32_t (&kept)[2], std::uint32_t codes, int place,
                                                     int i) {
    const auto mask = [&](int bit) { return ptx::spread_signs(codes << (15 - place - bit)); };
    const auto is = [&](int bit, int position) {
        return (position & 1 ? mask(bit) : ~mask(bit)) & (position & 2 ? mask(bit + 1) : ~mask(bit + 1));
    };
    return (kept[0] & is(0, i)) | (kept[1] & is(2, i));
}

// The word of codes (int4_page.cuh) of rows i and i + 8: of 8 groups of a row of which every other one, from `odd` on, counts.
__device__ __forceinline__ std::uint32_t int4_codes_of_rows(std::uint32_t row, std::uint32_t below, bool odd) {
    const auto of_row = [&](std::uint32_t groups) {
        const std::uint32_t mine = groups >> (odd ? 4 : 0) & 0x0f0f0f0fu;
        return ptx::permute_bytes<0x4140>(mine, 0) | ptx::permute_bytes<0x4342>(mine, 0) << 4;
    };
    const std::uint32_t positions = of_row(row) | of_row(below) << 8;
    // Of positions first < second the pattern first + second - 1, and 1 more where the first is not 0.
    const std::uint32_t first = positions & 0x33333333u, second = positions >> 2 & 0x33333333u;
    return first + second + ((first | first >> 1) & 0x11111111u) - 0x11111111u;
}

// Stores the codes of four strips and a pair. word(strip): of the lane's.
template <class Shape, class Word>
__device__ __forceinline__ void store_int4_codes(unsigned char *page, int four, int lane, Word &&word) {
    const std::uint32_t last = word(3);
#pragma unroll
    for (int i = 0; i < 3; ++i)
        ptx::store_4(page + int4_codes<Shape>(four, i, lane), word(i) | (last >> i & 0x11111111u) << 3);
}

// ---- K ---------------------------------------------------------------------------------------------------------------
// A lane has chunks of 8 channels, as pairs of one element of both groups, of tokens that are all even or all odd, and so of one
// half of the strip.
template <int HeadDim, class Source>
class Int4Keys {
public:
    using T = typename Source::Type;
    using Strip = KeyStrip<HeadDim>;
    using Shape = KeyPage<HeadDim>;
    static constexpr int kChunks = Strip::kRowChunks, kMaximaAt = 256, kRoomBytes = kInt4RoomBytes;
    static_assert(kStripRows * kChunks <= kMaximaAt && kMaximaAt + HeadDim * 2 <= kRoomBytes, "room for both");

    __device__ Int4Keys(const Strip &k, const Source &source, unsigned char *page, uint4 *room, int lane)
        : k_(k), source_(source), page_(page), rooms_(reinterpret_cast<unsigned char *>(room) - k.strip * kRoomBytes),
          lane_(lane) {}

    // Of what is kept, `x`, [chunks][elements]: the channels' scales, which the first strip's warp stores. All threads.
    __device__ __forceinline__ void find_scales(const std::uint32_t (&x)[Strip::kLoads][4]) {
        std::uint32_t most[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            most[i] = 0;
#pragma unroll
            for (int n = 0; n < Strip::kLoads; ++n) most[i] = Element<T>::larger(most[i], x[n][i]);
#pragma unroll
            for (int lanes = kChunks; lanes < 32; lanes *= 2)
                most[i] = Element<T>::larger(most[i], __shfl_xor_sync(~0u, most[i], lanes));
        }
        if (lane_ < kChunks) maxima(k_.strip)[k_.chunk] = uint4{most[0], most[1], most[2], most[3]};
        __syncthreads();
        uint4 all = maxima(0)[k_.chunk];
#pragma unroll
        for (int strip = 1; strip < kBlock / kStripRows; ++strip) {
            const uint4 other = maxima(strip)[k_.chunk];
            all = {Element<T>::larger(all.x, other.x), Element<T>::larger(all.y, other.y),
                   Element<T>::larger(all.z, other.z), Element<T>::larger(all.w, other.w)};
        }
        const std::uint32_t largest[4] = {all.x, all.y, all.z, all.w};
        const int step = k_.chunk / 4, half = k_.chunk / 2 % 2, t = k_.chunk % 2 * 2;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const float2 first = source_.in_units(largest[i], i), second = source_.in_units(largest[i + 1], i + 1);
            const Int4ScalePair low(first.x, second.x), high(first.y, second.y);  // of both groups
            inverse_[i] = of_stored({low.inverse.x, high.inverse.x}, i);
            inverse_[i + 1] = of_stored({low.inverse.y, high.inverse.y}, i + 1);
            if (k_.strip == 0 && lane_ < kChunks) {
                unsigned char *const to = page_ + Int4Scales<Shape>::at(0, step, t + i / 2) + half * 4;
                ptx::store_4(to, low.bits);
                ptx::store_4(to + 8, high.bits);
            }
        }
    }

    // Steps of the chunk's elements.
    __device__ __forceinline__ void steps(std::uint32_t (&to)[4], const std::uint32_t (&x)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 two = kOfStored ? Element<T>::unpack(x[i]) : source_.in_units(x[i], i);
            to[i] = int4_floors(int4_quotient(two.x, inverse_[i].x), int4_quotient(two.y, inverse_[i].y));
        }
    }

    // Stores words that two lanes have halves of: a lane those of one half of its chunks. half_word(n, which), which < Words;
    // at(row, which): where it belongs.
    template <int Words, class HalfWord, class At>
    __device__ __forceinline__ void store_words(HalfWord &&half_word, At &&at) const {
        constexpr int kHalf = Strip::kLoads / 2;
        unrolled<kHalf * Words>([&](int i) {
            const int n = i / Words, which = i % Words;
            const std::uint32_t first = half_word(n, which), second = half_word(n + kHalf, which);
            const std::uint32_t got = __shfl_xor_sync(~0u, is_below() ? first : second, kChunks);
            const int row = (k_.row0 % kStripRows + (n + (is_below() ? kHalf : 0)) * Strip::kRowsApart) / 2;
            ptx::store_4(page_ + at(row, which), (is_below() ? second : first) | got);
        });
    }
    __device__ bool is_below() const { return k_.row0 % 2; }

    // Codes of the n-th chunk, as of prune_2_of_4<0>; and, once all have theirs, the page's.
    __device__ __forceinline__ void put_codes(int n, std::uint32_t codes) const {
        const int token = k_.row0 % kStripRows + n * Strip::kRowsApart;
        rooms_[k_.strip * kRoomBytes + token * kChunks + k_.chunk] = static_cast<unsigned char>(codes | codes >> 12);
    }
    __device__ __forceinline__ void store_codes() const {
        const int pair = k_.strip;
        if (pair >= Shape::kPairs) return;
        store_int4_codes<Shape>(page_, pair, lane_, [&](int strip) {
            const auto groups = [&](int token) {
                return *reinterpret_cast<const std::uint32_t *>(rooms_ + strip * kRoomBytes + token * kChunks +
                                                                pair * 8 + lane_ % 4 / 2 * 4);
            };
            const int token = lane_ / 4 * 2;
            return int4_codes_of_rows(groups(token), groups(token + 1), lane_ % 2);
        });
    }

private:
    // An inverse has the units, too, where all of their products are numbers: none of fp16 comes near an end of fp32.
    static constexpr bool kOfStored = !Element<T>::kWide;
    __device__ __forceinline__ float2 of_stored(float2 inverse, int i) const {
        if constexpr (!kOfStored) return inverse;
        const float2 unit = source_.units(i);
        return {inverse.x * unit.x, inverse.y * unit.y};
    }

    __device__ uint4 *maxima(int strip) const {
        return reinterpret_cast<uint4 *>(rooms_ + strip * kRoomBytes + kMaximaAt);
    }

    const Strip &k_;
    const Source &source_;
    unsigned char *page_, *rooms_;
    int lane_;
    float2 inverse_[4];  // of the elements of both groups, or of the same as stored
};

// ---- V ---------------------------------------------------------------------------------------------------------------
// A lane has 8 head dims, of one half of a strip, x 16 tokens.
template <int HeadDim, class Source>
class Int4Values {
public:
    using Shape = ValuePage<HeadDim>;
    static constexpr int kCodesBytes = 512, kRunInverses = 20;  // apart so that no run's banks are another's
    static_assert(kCodesBytes + 4 * kRunInverses * 4 <= kInt4RoomBytes, "room for both");

    __device__ Int4Values(const ValueRuns &v, const Source &source, unsigned char *page, uint4 *room, int lane)
        : v_(v), source_(source), page_(page), room_(room), lane_(lane) {}

    // The larger magnitudes of two head dims of tokens, as pairs of 16 bits, in units.
    using Largest = std::uint32_t[16];
    __device__ __forceinline__ void take_largest(std::uint32_t &largest, std::uint32_t x, int pair) const {
        largest = Element<typename Source::Type>::larger(largest, source_.scaled(x, pair));
    }

    // Of what is kept, `x`: the tokens' scales.
    __device__ __forceinline__ void find_scales(const ValueRuns::Pairs &x) {
        Largest largest = {};
#pragma unroll
        for (int t = 0; t < 16; ++t)
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) take_largest(largest[t], x[t][pair], pair);
        find_scales(largest, [&](int t, int pair) { return x[t][pair]; });
    }
    // The same of the largest; kept(token, pair): what is kept.
    template <class Kept>
    __device__ __forceinline__ void find_scales(const Largest &largest, Kept &&kept) {
        float most[16];
        find_largest(most, largest, kept);
        // Over the lanes of the same run, each of which comes to have two of the 16.
        float eight[8], four[4], two[2];
        share(eight, most, v_.dims % 2, 1);
        share(four, eight, v_.dims / 2 % 2, 2);
        share(two, four, v_.dims / 4, 8);
        const int pair = v_.dims % 2 * 4 + v_.dims / 2 % 2 * 2 + v_.dims / 4;  // of tokens
        const Int4ScalePair scales(two[0], two[1]);
        *reinterpret_cast<float2 *>(inverses() + pair * 2) = scales.inverse;
        const int t = pair / 4 * 2 + pair % 2, number = v_.run % 2 + pair / 2 % 2 * 2;
        ptx::store_4(page_ + Int4Scales<Shape>::at(v_.part, v_.run / 2, t) + number * 4, scales.bits);
        __syncwarp();
    }
    // Reads them all.
    __device__ __forceinline__ void load_inverses(float (&inverse)[16]) const {
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(inverses() + i);
            inverse[i] = four.x, inverse[i + 1] = four.y, inverse[i + 2] = four.z, inverse[i + 3] = four.w;
        }
    }

    // Quotients of two head dims of a token, of that inverse.
    __device__ __forceinline__ float2 quotients(std::uint32_t x, float inverse, int pair) const {
        const float2 two = source_.in_units(x, pair);
        return {int4_quotient(two.x, inverse), int4_quotient(two.y, inverse)};
    }
    // Floors of what two head dims' groups `g` keep first or last, whose inverses are looked up by its codes.
    __device__ __forceinline__ std::uint32_t kept_floors(std::uint32_t x, std::uint32_t codes, int g, bool last,
                                                         int pair) const {
        const float2 two = source_.in_units(x, pair);
        const auto inverse = [&](int bit) {  // of the code's two bits from there on
            const std::uint32_t byte = (bit < 2 ? codes << (2 - bit) : codes >> (bit - 2)) & 12u;
            return *reinterpret_cast<const float *>(reinterpret_cast<const unsigned char *>(inverses() + g * 4) + byte);
        };
        const int bit = g * 4 + last * 2;
        return int4_in_range(int4_floors(int4_quotient(two.x, inverse(bit)), int4_quotient(two.y, inverse(16 + bit))));
    }

    // Stores words that two lanes have halves of: a lane those of half of its head dims. half_words(pair, which): of both rows
    // of a pair; at(row, which): where a word of row 0 .. 7 of the strip belongs.
    template <int Words, class HalfWords, class At>
    __device__ __forceinline__ void store_words(HalfWords &&half_words, At &&at) const {
        unrolled<2 * Words>([&](int i) {
            const int pair = i / Words, which = i % Words;
            const uint2 first = half_words(pair, which), second = half_words(pair + 2, which);
            const auto store = [&](int row, std::uint32_t mine, std::uint32_t other) {
                ptx::store_4(page_ + at(row, which), mine | __shfl_xor_sync(~0u, other, 1));
            };
            const int row = pair * 2 + (is_below() ? 4 : 0);
            store(row, is_below() ? second.x : first.x, is_below() ? first.x : second.x);
            store(row + 1, is_below() ? second.y : first.y, is_below() ? first.y : second.y);
        });
    }
    __device__ bool is_below() const { return v_.dims % 2; }
    __device__ int strip() const { return v_.part * 4 + v_.dims / 2; }

    // Codes of the run's four groups, of two head dims in the low and high halves; and, once all have theirs, the page's.
    __device__ __forceinline__ void put_codes(int pair, std::uint32_t codes) const {
        auto *const places = reinterpret_cast<std::uint16_t *>(room_) + (v_.dims * 8 + pair * 2) * 4 + v_.run;
        places[0] = static_cast<std::uint16_t>(codes);
        places[4] = static_cast<std::uint16_t>(codes >> 16);
    }
    __device__ __forceinline__ void store_codes() const {
        __syncwarp();
        store_int4_codes<Shape>(page_, v_.part, lane_, [&](int strip) {
            const auto groups = [&](int row) {
                return reinterpret_cast<const std::uint32_t *>(room_)[(strip * kStripRows + row) * 2 + lane_ % 4 / 2];
            };
            return int4_codes_of_rows(groups(lane_ / 4), groups(lane_ / 4 + 8), lane_ % 2);
        });
    }

private:
    // Of tokens, in units. Pairs of 16 bits take a third of the instructions: exact as long as no unit makes numbers smaller and
    // none gets too large.
    template <class Kept>
    __device__ __forceinline__ void find_largest(float (&most)[16], const Largest &largest, Kept &&kept) const {
        using E = Element<typename Source::Type>;
        std::uint32_t all = 0;
#pragma unroll
        for (int t = 0; t < 16; ++t) all = E::larger(all, largest[t]);
        const float2 of_all = E::unpack(all);
        const bool is_exact = source_.has_units_from_1() && of_all.x <= E::kLargest && of_all.y <= E::kLargest;
        if (__all_sync(~0u, is_exact)) {
#pragma unroll
            for (int t = 0; t < 16; ++t) {
                const float2 two = E::unpack(largest[t]);
                most[t] = fmaxf(two.x, two.y);
            }
            return;
        }
#pragma unroll
        for (int t = 0; t < 16; ++t) {
            most[t] = 0.0f;
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const float2 two = source_.in_units(kept(t, pair), pair);
                most[t] = fmaxf(most[t], fmaxf(fabsf(two.x), fabsf(two.y)));
            }
        }
    }

    // Halves of what two lanes have, the later one's where `later`: the larger of each.
    template <int Count>
    static __device__ __forceinline__ void share(float (&half)[Count], const float (&x)[2 * Count], bool later,
                                                 int lanes) {
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            const float other = __shfl_xor_sync(~0u, later ? x[i] : x[Count + i], lanes);
            half[i] = fmaxf(later ? x[Count + i] : x[i], other);
        }
    }

    // Of the run's tokens.
    __device__ float *inverses() const {
        return reinterpret_cast<float *>(room_) + kCodesBytes / 4 + v_.run * kRunInverses;
    }

    const ValueRuns &v_;
    const Source &source_;
    unsigned char *page_;
    uint4 *room_;
    int lane_;
};

}  // namespace hsb::cuda

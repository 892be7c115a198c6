// How a block of V comes to have scales and words (int4_pack.cuh). Scales are of 64 channels, which one warp has; in `room`:
//
//   codes     u16 [64 rows][4 runs] of four groups each
//   inverses  f32 [4 runs][20], of 16 tokens each
#pragma once

#include "cuda/compress/prune.cuh"
#include "cuda/unrolled.cuh"
#include "int4_pack.cuh"

namespace hsb::cuda {

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
        const std::uint32_t first = ptx::shared_address(inverses());
        const auto inverse = [&](int bit) {  // of the code's two bits from there on
            return ptx::load_shared_f32(int4_entry<4>(first, codes, bit) + g * 4 * 4);
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
                const std::uint32_t got = __shfl_xor_sync(~0u, other, 1);
                ptx::store_4(page_ + at(row, which), int4_word(mine, got, is_below()));
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

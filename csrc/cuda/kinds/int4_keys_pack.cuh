// How a block of K comes to have scales and words (int4_pack.cuh). Scales are of all its tokens: a CTA's four warps have the four
// strips of one block, and meet in `room`, of each warp:
//
//   codes      u8 [16 tokens][head_dim / 8 chunks]: two groups each, the kept positions in 4 bits, of 2:4 pages
//   maxima     u16 [head_dim / 8 chunks][4 elements][2 groups], at byte 256
//   units      the same of a quarter of the chunks, at 512, and
//   inverses   [chunks][2 groups][4 elements], at 576: f32, in which units are, or of bf16 f32 and the unit
#pragma once

#include "cuda/unrolled.cuh"
#include "fp8_page.cuh"
#include "int4_pack.cuh"

namespace hsb::cuda {

// A lane has chunks of 8 channels, as pairs of one element of both groups, of tokens that are all even or all odd, and so of one
// half of the strip.
template <int HeadDim, class Source>
class Int4Keys {
public:
    using T = typename Source::Type;
    using Strip = KeyStrip<HeadDim>;
    using Shape = KeyPage<HeadDim>;
    static constexpr int kChunks = Strip::kRowChunks, kRoomBytes = kInt4RoomBytes;
    static constexpr int kMaximaAt = 256, kUnitsAt = 512, kInversesAt = 576;
    // An inverse has the units, too, where all of their products are numbers: none of fp16 comes near an end of fp32.
    static constexpr bool kHasUnits = !Element<T>::kWide;
    static constexpr int kEntryBytes = kHasUnits ? 4 : 8, kOfGroup = 4 * kEntryBytes, kOfChunk = 2 * kOfGroup;
    static constexpr int kOwnChunks = 4;  // whose scales a warp finds
    static_assert(kStripRows * kChunks <= kMaximaAt && kMaximaAt + HeadDim * 2 <= kUnitsAt, "room for all");
    static_assert(kInversesAt + kOwnChunks * kOfChunk <= kRoomBytes && kRoomBytes % kOfGroup == 0, "of inverses, too");

    __device__ Int4Keys(const Strip &k, const Source &source, unsigned char *page, uint4 *room, int lane)
        : k_(k), source_(source), page_(page), rooms_(reinterpret_cast<unsigned char *>(room) - k.strip * kRoomBytes),
          lane_(lane) {}

    // Looks at what is kept of a chunk, in its place.
    __device__ __forceinline__ void look_at(const std::uint32_t (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) most_[i] = Element<T>::larger(most_[i], x[i]);
    }

    // Of all that was looked at: the channels' scales, each of which one lane of the CTA finds and stores. All threads.
    __device__ __forceinline__ void find_scales() {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int lanes = kChunks; lanes < 32; lanes *= 2)
                most_[i] = Element<T>::larger(most_[i], __shfl_xor_sync(~0u, most_[i], lanes));
        if (lane_ < kChunks) {
            at<uint4>(k_.strip, kMaximaAt)[k_.chunk] = uint4{most_[0], most_[1], most_[2], most_[3]};
            if (k_.chunk / kOwnChunks == k_.strip)
                at<uint4>(k_.strip, kUnitsAt)[k_.chunk % kOwnChunks] = source_.packed_units();
        }
        __syncthreads();
        if (k_.strip < kChunks / kOwnChunks) find_own_scale();
        __syncthreads();
        inverses_ = ptx::shared_address(rooms_) + k_.chunk / kOwnChunks * kRoomBytes + kInversesAt +
                    k_.chunk % kOwnChunks * kOfChunk;
    }

    // Floors of a chunk's elements, not yet in range, by the inverses of all.
    using Inverses = float2[4];
    __device__ __forceinline__ void load_inverses(Inverses &inverse) const {
        unrolled<4>([&](int i) {
            inverse[i] = {ptx::load_shared_f32(inverses_ + i * kEntryBytes),
                          ptx::load_shared_f32(inverses_ + kOfGroup + i * kEntryBytes)};
        });
    }
    __device__ __forceinline__ void floors(std::uint32_t (&to)[4], const std::uint32_t (&x)[4],
                                           const Inverses &inverse) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 two = kHasUnits ? Element<T>::unpack(x[i]) : source_.in_units(x[i], i);
            to[i] = int4_floors(int4_quotient(two.x, inverse[i].x), int4_quotient(two.y, inverse[i].y));
        }
    }
    // Of what both groups of a chunk keep first or last, by its codes.
    __device__ __forceinline__ std::uint32_t kept_floors(std::uint32_t kept, std::uint32_t codes, bool last) const {
        const int bit = last ? 2 : 0;
        const float2 two = Element<T>::unpack(kept);
        return int4_floors(quotient(two.x, int4_entry<kEntryBytes>(inverses_, codes, bit)),
                           quotient(two.y, int4_entry<kEntryBytes>(inverses_, codes, 16 + bit) + kOfGroup));
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
            ptx::store_4(page_ + at(row, which), int4_word(is_below() ? second : first, got, is_below()));
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
                return *at<const std::uint32_t>(strip, token * kChunks + pair * 8 + lane_ % 4 / 2 * 4);
            };
            const int token = lane_ / 4 * 2;
            return int4_codes_of_rows(groups(token), groups(token + 1), lane_ % 2);
        });
    }

private:
    template <class Word>
    __device__ Word *at(int strip, int byte) const {
        return reinterpret_cast<Word *>(rooms_ + strip * kRoomBytes + byte);
    }

    __device__ __forceinline__ void find_own_scale() const {
        const int own = lane_ / 8, element = lane_ / 2 % 4, group = lane_ % 2, chunk = k_.strip * kOwnChunks + own;
        std::uint32_t most = 0;  // magnitudes are ordered as their bits
#pragma unroll
        for (int strip = 0; strip < kBlock / kStripRows; ++strip)
            most = max(most, std::uint32_t{at<const std::uint16_t>(strip, kMaximaAt)[k_.strip * 32 + lane_]});
        const float unit = Element<T>::unpack(at<const std::uint16_t>(k_.strip, kUnitsAt)[lane_]).x;
        const Int4ScalePair scale(__fmul_rn(Element<T>::unpack(most).x, unit), 0.0f);
        auto *const to = at<float>(k_.strip, kInversesAt + own * kOfChunk + group * kOfGroup + element * kEntryBytes);
        if constexpr (kHasUnits)
            *to = scale.inverse.x * unit;
        else
            *reinterpret_cast<float2 *>(to) = float2{scale.inverse.x, unit};
        // Pairs of elements of one group stand together.
        unsigned char *const page = page_ + Int4Scales<Shape>::at(0, chunk / 4, chunk % 2 * 2 + element / 2);
        *reinterpret_cast<std::uint16_t *>(page + chunk / 2 % 2 * 4 + group * 8 + element % 2 * 2) =
            static_cast<std::uint16_t>(scale.bits);
    }

    static __device__ __forceinline__ float quotient(float x, std::uint32_t entry) {
        if constexpr (kHasUnits) {
            return int4_quotient(x, ptx::load_shared_f32(entry));
        } else {
            const float2 inverse_unit = ptx::load_shared_f32x2(entry);
            return int4_quotient(__fmul_rn(x, inverse_unit.y), inverse_unit.x);
        }
    }

    const Strip &k_;
    const Source &source_;
    unsigned char *page_, *rooms_;
    int lane_;
    std::uint32_t most_[4] = {};  // of the elements of both groups
    std::uint32_t inverses_;      // of the chunk
};

}  // namespace hsb::cuda

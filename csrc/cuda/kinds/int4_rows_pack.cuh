// How V in groups along head_dim gets into its pages of int4 (compress/pack.cuh), rows of which are groups and cols tokens times
// places: what a dense page and a 2:4 one have alike.
#pragma once

#include "int4_pack.cuh"

namespace hsb::cuda {

// A lane has successive tokens' 8 channels, as pairs of one element of both groups: two rows of the page, of one half of a strip.
// Codes stand in room: u8 [rows][8], of two tokens each.
template <int HeadDim, class Source>
class Int4Rows {
public:
    using Strip = RowStrip<HeadDim>;
    using Shape = HeadDimValuePage<HeadDim>;
    static constexpr int kRowBytes = kStripRows / 2, kRoomBytes = kInt4RoomBytes;
    static_assert(Shape::kRows * kRowBytes <= kRoomBytes, "room for codes");

    __device__ Int4Rows(const Strip &v, const Source &source, unsigned char *page, uint4 *room, int lane)
        : v_(v), source_(source), page_(page), rooms_(reinterpret_cast<unsigned char *>(room) - v.strip * kRoomBytes),
          lane_(lane) {}

    // Of what is kept, `x`, [tokens][elements]: the tokens' scales.
    __device__ __forceinline__ void find_scales(const std::uint32_t (&x)[Strip::kLoads][4]) {
        const bool is_first = v_.chunk % kLanes == 0;
#pragma unroll
        for (int n = 0; n < Strip::kLoads; n += 2) {
            float most[2];
#pragma unroll
            for (int t = 0; t < 2; ++t) {
                most[t] = 0.0f;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 two = source_.in_units(x[n + t][i], i);
                    most[t] = fmaxf(most[t], fmaxf(fabsf(two.x), fabsf(two.y)));
                }
#pragma unroll
                for (int lanes = 1; lanes < kLanes; lanes *= 2)
                    most[t] = fmaxf(most[t], __shfl_xor_sync(~0u, most[t], lanes));
            }
            const Int4ScalePair scales(most[0], most[1]);
            inverse_[n] = scales.inverse.x;
            inverse_[n + 1] = scales.inverse.y;
            if (is_first) {
                store_scale(v_.row0 + n, scales.bits);
                store_scale(v_.row0 + n + 1, scales.bits >> 16);
            }
        }
    }

    // Steps of a token's elements, of both groups.
    __device__ __forceinline__ void steps(std::uint32_t (&to)[4], const std::uint32_t (&x)[4], int n) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 two = source_.in_units(x[i], i);
            to[i] = int4_floors(int4_quotient(two.x, inverse_[n]), int4_quotient(two.y, inverse_[n]));
        }
    }

    // Stores the word of two tokens' two values each, `a` and `b`, of both groups: lanes of both halves of a strip have half of
    // it, and each stores that of one group. at(row): where it belongs, row 0 .. 7 of the strip.
    template <class At>
    __device__ __forceinline__ void store_word(std::uint32_t a0, std::uint32_t a1, std::uint32_t b0, std::uint32_t b1,
                                               At &&at) const {
        const bool below = v_.chunk % kLanes >= kLanes / 2;
        const std::uint32_t first = ptx::permute_bytes<0x6240>(int4_in_range(a0), int4_in_range(b0));
        const std::uint32_t second = ptx::permute_bytes<0x6240>(int4_in_range(a1), int4_in_range(b1));
        const std::uint32_t of_first = int4_half_word(ptx::low_halves(first, second), below);
        const std::uint32_t of_second = int4_half_word(ptx::high_halves(first, second), below);
        const std::uint32_t got = __shfl_xor_sync(~0u, below ? of_first : of_second, kLanes / 2);
        const int row = v_.chunk % (kLanes / 2) * 2 + below;
        ptx::store_4(page_ + at(row), int4_word(below ? of_second : of_first, got, below));
    }
    // The number of the first of the words that a token's pair of 64 cols has of the lane's strip, in units of such.
    __device__ __forceinline__ int pair_strip() const { return v_.strip * Shape::kStrips + v_.chunk / kLanes; }

    // Codes of tokens n and n + 1, as of prune_2_of_4<0>; and, once all have theirs, the page's. All threads.
    __device__ __forceinline__ void put_codes(int n, std::uint32_t codes, std::uint32_t next) const {
        const std::uint32_t both = codes | next << 4;
        unsigned char *const to =
            rooms_ + v_.strip * kRoomBytes + v_.group(0) * kRowBytes + (v_.row0 + n) % kStripRows / 2;
        to[0] = static_cast<unsigned char>(both);
        to[kRowBytes] = static_cast<unsigned char>(both >> 16);
    }
    __device__ __forceinline__ void store_codes() const {
        __syncthreads();
        if (v_.strip >= Shape::kStrips * Shape::kPairs / 4) return;
        store_int4_codes<Shape>(page_, v_.strip, lane_, [&](int i) {
            const int at = v_.strip * 4 + i, pair = at / Shape::kStrips, strip = at % Shape::kStrips;
            const auto groups = [&](int row) {
                return *reinterpret_cast<const std::uint32_t *>(
                    rooms_ + pair * kRoomBytes + (strip * kStripRows + row) * kRowBytes + lane_ % 4 / 2 * 4);
            };
            return int4_codes_of_rows(groups(lane_ / 4), groups(lane_ / 4 + 8), lane_ % 2);
        });
    }

private:
    static constexpr int kLanes = 64 / 8;  // that share a scale

    __device__ __forceinline__ void store_scale(int token, std::uint32_t bits) const {
        const int of_step = token % 8, place = of_step % 4 * 2 + of_step / 4;
        unsigned char *const to = page_ + Int4Scales<Shape>::at(v_.chunk / kLanes, token / 8, 0) + place * 2;
        *reinterpret_cast<std::uint16_t *>(to) = static_cast<std::uint16_t>(bits);
    }

    const Strip &v_;
    const Source &source_;
    unsigned char *page_, *rooms_;
    int lane_;
    float inverse_[Strip::kLoads];  // of the tokens
};

}  // namespace hsb::cuda

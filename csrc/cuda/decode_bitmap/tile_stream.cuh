// The tiles of one warp: copies them into its ring ahead of use, and spreads kept values out into registers.
#pragma once

#include <cstdint>
#include <utility>

#include "cuda/ptx/gather.cuh"
#include "cuda/ptx/shared.cuh"
#include "launch.h"

namespace hsb::cuda::decode_bitmap {

// A lane's elements of a bitmap: `Count` from `first` on of each 16.
template <int Count>
class LaneElements {
public:
    __device__ explicit LaneElements(int first) : before_((1u << first) - 1), first_(first) {}

    // Values of the elements of bitmap `chunk` of the stage's tile: [16][Count], 0 where nothing is kept.
    __device__ __forceinline__ void gather(std::uint32_t (&values)[4][Count], std::uint32_t stage, int chunk) const {
        const uint2 bits = ptx::load_shared_u32x2(stage + kStageBitmap + chunk * 8);
        const uint2 place = ptx::load_shared_u32x2(stage + kStagePlace + chunk * 8);
        const std::uint32_t mine[2] = {bits.x >> first_, bits.y >> first_};
        take<0>(values[0], mine[0], place, bits.x & before_);
        take<1>(values[1], mine[0], place, bits.x & before_ << 16);
        take<2>(values[2], mine[1], place, bits.y & before_);
        take<3>(values[3], mine[1], place, bits.y & before_ << 16);
    }

private:
    // Those of the 16 elements `Window`; `before` has the bits of the 16 that come before them.
    template <int Window>
    __device__ __forceinline__ static void take(std::uint32_t (&values)[Count], std::uint32_t bits, uint2 place,
                                                std::uint32_t before) {
        std::uint32_t address = __dp4a(place.y, 1u << (Window * 8), place.x) + 2 * __popc(before);
        take_each<Window % 2 * 16>(values, bits, address, std::make_integer_sequence<int, Count>());
    }
    template <int Bit, int... Which>
    __device__ __forceinline__ static void take_each(std::uint32_t (&values)[Count], std::uint32_t bits,
                                                     std::uint32_t address, std::integer_sequence<int, Which...>) {
        ((values[Which] = ptx::take_shared_u16_if<1u << (Bit + Which)>(address, bits)), ...);
    }

    std::uint32_t before_;
    int first_;
};

// K or V of the warp's tiles, in order: where each tile's values begin and end, and the copies into the ring.
class TileStream {
public:
    __device__ TileStream(const BitmapOperand &from, std::int64_t head_chunk, std::int32_t head_chunks,
                          std::int64_t all_chunks, int lane)
        : bitmap_(from.bitmap + head_chunk * 2), offset_(from.offset + head_chunk), values_(from.values),
          chunks_(head_chunks), last_head_(head_chunk + head_chunks == all_chunks), lane_(lane) {}

    // Looks up 32 tiles, one a lane: `tile`, tile + kTileWarps, ... below `end`.
    __device__ void look_up(int tile, int end) {
        const int mine = tile + lane_ * kTileWarps;
        begin_ = end_ = 0;
        if (mine >= end) return;
        const std::int32_t first = mine * kTileChunks;
        const std::int32_t next = first + kTileChunks < chunks_ ? first + kTileChunks : chunks_;
        begin_ = __ldg(offset_ + first);
        if (next < chunks_ || !last_head_) {
            end_ = __ldg(offset_ + next);
        } else {  // nothing follows
            const int kept = __popc(__ldg(bitmap_ + next * 2 - 2)) + __popc(__ldg(bitmap_ + next * 2 - 1));
            end_ = __ldg(offset_ + next - 1) + (kept + 7) / 8;
        }
    }

    // Units before the tile that is `at` in the look-up.
    __device__ std::uint32_t begin(int at) const { return __shfl_sync(~0u, begin_, at); }

    // Turns the offsets of a stage into places, once its copies have come: each lane looks at what it has copied itself.
    __device__ void find_places(std::uint32_t stage, std::uint32_t begin) const {
        const uint2 bits = ptx::load_shared_u32x2(stage + kStageBitmap + lane_ * 8);
        const std::uint32_t to = stage + kStagePlace + lane_ * 8, offset = ptx::load_shared_u32(to);
        const std::uint32_t before16 = __popc(bits.x & 0xffff), before32 = __popc(bits.x);
        const std::uint32_t before48 = before32 + __popc(bits.y & 0xffff);
        ptx::store_shared_u32x2(
            to, {stage + (offset - begin) * kUnitBytes, before16 << 9 | before32 << 17 | before48 << 25});
    }

    // Copies tile `tile`, `at` in the look-up, into a stage. The whole warp calls this, and commits.
    __device__ void load(int tile, int at, std::uint32_t stage) const {
        const std::uint32_t begin = __shfl_sync(~0u, begin_, at), units = __shfl_sync(~0u, end_, at) - begin;
        const unsigned char *values = values_ + (std::int64_t{begin} + lane_) * kUnitBytes;
        copy_units(stage + lane_ * kUnitBytes, values, static_cast<std::int32_t>(units) - lane_,
                   std::make_integer_sequence<int, sizeof(Stage::values) / kUnitBytes / 32>());
        const std::int32_t chunk = tile * kTileChunks + lane_;
        const bool there = chunk < chunks_;  // past the head's end: bitmaps of nothing
        ptx::cp_async_or_zero<8>(stage + kStageBitmap + lane_ * 8, bitmap_ + std::int64_t{chunk} * 2, there);
        ptx::cp_async_or_zero<4>(stage + kStagePlace + lane_ * 8, offset_ + chunk, there);
    }

private:
    // Unit `lane` of each 32, while there are any.
    template <int... Round>
    __device__ __forceinline__ static void copy_units(std::uint32_t to, const unsigned char *from, std::int32_t left,
                                                      std::integer_sequence<int, Round...>) {
        (ptx::cp_async_16_if<Round * 32 * kUnitBytes>(to, from, left > Round * 32), ...);
    }

    const std::uint32_t *bitmap_, *offset_;  // of this head
    const unsigned char *values_;
    std::int32_t chunks_;  // of this head
    bool last_head_;       // of the tensor
    int lane_;
    std::uint32_t begin_ = 0, end_ = 0;
};

}  // namespace hsb::cuda::decode_bitmap

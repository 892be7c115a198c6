// How the work of decode over bitmaps is cut, and what a warp keeps in shared memory.
//
// A tile is the tokens of 32 bitmaps, one bitmap a lane: 16 tokens with head_dim 128, 32 with head_dim 64. The tiles of a
// (batch, kv head) are cut in `splits` equal parts, one per CTA; within a part, the CTA's warps take tiles in turn, each
// with a ring of its own. Per split, one partial result goes to the workspace; a second kernel combines them in order.
//
//   kv head   |<--------------------- head 0 --------------------->|<------- head 1 ...
//   splits    |------ CTA 0 ------|------ CTA 1 ------|-- CTA 2 ---|
//   tiles     |0|1|2|3|0|1|2|3|0|1|0|1|2|3| ...                            the number is the warp's
//
// A ring's stages take K and V of a tile in turn:
//
//   | stage 0: K of tile t | stage 1: V of tile t | stage 2: K of the warp's next tile |     two under way, one in use
//
// A place comes as the bitmap's offset, and is then turned into what gathering needs: the shared address of the bitmap's
// first value, and one byte per 16 elements: twice the number of values before them.
//
// Workspace:  partial float [batch * kv_heads * splits][group * (head_dim + 2)]: output [group][head_dim], not yet divided
//             by its sum; maximum (of the unscaled scores), sum [group]
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/page.cuh"
#include "cuda/shared_limit.h"

namespace hsb::cuda::decode_bitmap {

constexpr int kChunkElements = 64;  // of a bitmap
constexpr int kUnitBytes = 16;      // what an offset counts in: 8 values
constexpr int kTileChunks = 32;
constexpr int kTileWarps = 4;  // per CTA

// K or V of a tile in shared memory.
struct Stage {
    unsigned char values[kTileChunks * kChunkElements * 2];  // as many as are kept
    std::uint32_t bitmap[kTileChunks][2];
    std::uint32_t place[kTileChunks][2];
};
constexpr int kStageBytes = sizeof(Stage), kStageBitmap = offsetof(Stage, bitmap), kStagePlace = offsetof(Stage, place);
static_assert(kStageBytes % 128 == 0, "stages start on a bank row");

// A warp's.
struct Ring {
    Stage stage[3];
};
struct SharedMemory {
    Ring ring[kTileWarps];
};
static_assert(sizeof(SharedMemory) <= kSharedLimitSm89, "a CTA must fit anywhere");
static_assert(4 * (sizeof(SharedMemory) + 1024) <= kSharedLimitSm90 + 1024, "four CTAs on a multiprocessor of sm_90");

HSB_HOST_DEVICE constexpr int tile_tokens(int head_dim) { return kTileChunks * kChunkElements / head_dim; }

HSB_HOST_DEVICE constexpr int partial_floats_of(int group, int head_dim) { return group * (head_dim + 2); }

// Splits per head, where `slots` CTAs run at once. All CTAs take as long as the longest, so what counts is rounds times the
// tiles of one CTA; and each CTA costs about as much as some tiles more, for filling its rings and merging its warps.
constexpr int choose_splits(std::int64_t heads, std::int64_t tiles, int slots) {
    constexpr std::int64_t kFixed = 12, kMost = 512;
    std::int64_t best = 1, best_cost = INT64_MAX;
    for (std::int64_t splits = 1; splits <= kMost && splits <= tiles; ++splits) {
        const std::int64_t rounds = (heads * splits + slots - 1) / slots;
        const std::int64_t cost = rounds * ((tiles + splits - 1) / splits + kFixed);
        if (cost < best_cost) {
            best = splits;
            best_cost = cost;
        }
    }
    return static_cast<int>(best);
}
static_assert(choose_splits(8, 8192, 528) == 66, "128k tokens of 8 heads fill an H200 once");

}  // namespace hsb::cuda::decode_bitmap

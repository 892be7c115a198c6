// How decode's work is cut, and what a block of threads keeps in shared memory.
//
// All blocks of 64 tokens of all (batch, kv head) stand in one line, in the order of the block map. A page pair is one
// block's K page and V page. The line is cut into as many equal parts as there are CTAs, one CTA per multiprocessor:
//
//   kv head       |<------ head 0 ------>|<------ head 1 ------>|<------ head 2 ------>|
//   part of CTA   |---- 0 ----|---- 1 ----|---- 2 ----|---- 3 ----|---- 4 ----|-- 5 ---|
//   segments      |     a     |    b  | c |     d     |  e |  f   |     g     |    h   |
//
// A part that crosses into another head makes one segment per head. Within a part, warp w takes page pairs w,
// w + warps, w + 2 warps, ...: the CTA streams one contiguous range, and each warp runs on its own, with its own ring
// of stages in shared memory. At the end of a segment the warps merge in shared memory, and what the CTA has of that
// head (maximum, sum, output not yet divided by it) becomes one partial result, unless it was the whole head. Whoever
// adds the last partial result of a head combines them in the order of the CTAs: no result depends on who came when.
//
// A part leaves at most two partial results: one of the head that it finds begun, one of a head that it begins and
// does not finish.
//
// Workspace:  counter u32 [batch * q_heads], padded to 64 bytes: zero before the first call, and after every call
//             partial     [CTAs][2][partial_floats]: output [group][head_dim], maximum [group], sum [group]
#pragma once

#include <cstdint>

#include "cuda/block_kinds.cuh"
#include "cuda/shared_limit.h"

namespace hsb::cuda::decode {

// The cut of `pages` page pairs into `parts`: the first pages % parts of them are one longer.
struct Partition {
    std::int32_t pages;
    std::int32_t parts;

    HSB_HOST_DEVICE std::int32_t begin(std::int32_t part) const {
        const std::int32_t longer = pages % parts;
        return part * (pages / parts) + (part < longer ? part : longer);
    }
    HSB_HOST_DEVICE std::int32_t part_of(std::int32_t page) const {
        const std::int32_t shorter = pages / parts, longer = pages % parts;
        const std::int32_t in_longer = longer * (shorter + 1);
        return page < in_longer ? page / (shorter + 1) : longer + (page - in_longer) / shorter;
    }
};

// Parts for so many heads: a multiple of them where that leaves at most 1 in 16 multiprocessors idle, which memory does
// not notice. No part then crosses into another head, so that none merges twice, and fewer share each head.
HSB_HOST_DEVICE constexpr int parts_of(int heads, int multiprocessors) {
    const int even = multiprocessors / heads * heads;
    return even * 16 >= multiprocessors * 15 ? even : multiprocessors;
}
static_assert(parts_of(8, 132) == 128 && parts_of(64, 132) == 128 && parts_of(96, 132) == 132, "H100 and H200");

// A multiple of 4, so that outputs are read 16 bytes at a time.
HSB_HOST_DEVICE constexpr int partial_floats(int group, int head_dim) { return (group * (head_dim + 2) + 3) / 4 * 4; }

// ---- shared memory ------------------------------------------------------------------------------------------------
//
//   | warp 0: stage 0, stage 1, .. | warp 1: .. | ..                     stage = K page, V page
//   | StageBarriers [warps][stages] | MergePlaces |

constexpr int kMaxWarps = 12;
constexpr int kMaxStages = 4;
constexpr int kStageAlign = 128;

struct StageBarriers {
    std::uint64_t key, value;  // mbarriers: the stage's page has come
};
constexpr int kBarrierBytes = sizeof(StageBarriers);
static_assert(kBarrierBytes == 16, "as the instruction set has them");

struct MergePlaces {
    std::int32_t result_at[kMaxWarps];  // byte offset of each warp's result in shared memory, -1 if it has none
};

// The rings of a CTA's warps.
struct RingShape {
    std::int32_t key_bytes;  // the largest K page that the map may hold
    std::int32_t value_bytes;
    std::int32_t warps;
    std::int32_t stages;  // per warp

    HSB_HOST_DEVICE int stage_bytes() const { return key_bytes + value_bytes; }
    HSB_HOST_DEVICE int ring_bytes() const { return warps * stages * stage_bytes(); }
    HSB_HOST_DEVICE int shared_bytes() const { return ring_bytes() + tail_bytes(warps * stages); }

    HSB_HOST_DEVICE static constexpr int tail_bytes(int all_stages) {
        return all_stages * kBarrierBytes + static_cast<int>(sizeof(MergePlaces));
    }
};

// Bandwidth needs bytes in flight, and a stage is in flight except while its warp computes on it: so as many stages as
// fit, and one warp for each: a stage is empty while its warp computes, but the other warps' are not, and a page waits
// for no other page's arithmetic. Warps are no more than there are page pairs in a part, or query heads in a group
// (each head is merged by a warp of its own); what is left then goes to more stages. Where a third of what fits would be
// left because it is less than one for each, fewer warps have one more each, a multiple of four, as there are schedulers.
constexpr RingShape choose_ring(int key_bytes, int value_bytes, int shared_limit, int max_warps, int pages_per_part,
                                int group) {
    int all = kMaxWarps * kMaxStages;
    while (all > 1 && all * (key_bytes + value_bytes) + RingShape::tail_bytes(all) > shared_limit) --all;
    int warps = all;
    if (warps > max_warps) warps = max_warps;
    const int useful = pages_per_part > group ? pages_per_part : group;
    if (warps > useful) warps = useful;
    int stages = all / warps;
    if (stages > kMaxStages) stages = kMaxStages;
    const bool left = warps * stages * 3 < all * 2 && stages < kMaxStages && pages_per_part > warps;
    const int fewer = all / (stages + 1) / 4 * 4;
    if (left && fewer >= group) return {key_bytes, value_bytes, fewer, stages + 1};
    return {key_bytes, value_bytes, warps, stages};
}
static_assert(RingShape::tail_bytes(1) + 2 * largest_page_bytes(128) <= kSharedLimitSm89,
              "one stage must fit anywhere");
static_assert(choose_ring(9216, 9216, kSharedLimitSm90, 12, 100, 4).warps == 12,
              "2:4 pages on sm_90: 12 stages of 18 KiB");
static_assert(choose_ring(16384, 16384, kSharedLimitSm90, 12, 100, 4).warps == 7,
              "dense pages on sm_90: 7 stages of 32 KiB");
static_assert(choose_ring(16384, 16384, kSharedLimitSm89, 12, 100, 4).warps == 3,
              "dense pages on sm_89: 3 stages of 32 KiB");
static_assert(choose_ring(5120, 5120, kSharedLimitSm90, 12, 100, 4).warps == 8,
              "2:4 pages of e4m3 on sm_90: 8 warps of 2 stages of 10 KiB");
static_assert(choose_ring(8192, 8192, kSharedLimitSm90, 12, 100, 4).warps == 12,
              "dense pages of e4m3 on sm_90: 12 stages of 16 KiB");

}  // namespace hsb::cuda::decode

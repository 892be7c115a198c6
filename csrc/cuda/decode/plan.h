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
// Where there is a plan by kv heads, it is taken instead (below): it is shorter from launch to result.
//
// Workspace:  counter u32 [batch * q_heads], or as many as plans by kv heads count, padded to 64 bytes: zero before the
//             first call, and after every call
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
//   | rooms [warps] |                                                    of V in groups along head_dim (value_axis.cuh)
//   | StageBarriers [warps][stages] | MergePlaces |

constexpr int kMaxWarps = 12;
constexpr int kMaxStages = 4;
constexpr int kStageAlign = 128;

// Registers: 168 a thread for one column of 8 heads, 255 for two.
template <int Tiles>
constexpr int max_threads() {
    return Tiles == 1 ? kMaxWarps * 32 : 256;
}

struct StageBarriers {
    std::uint64_t key, value;  // mbarriers: the stage's page has come
};
constexpr int kBarrierBytes = sizeof(StageBarriers);
static_assert(kBarrierBytes == 16, "as the instruction set has them");

struct MergePlaces {
    std::int32_t result_at[kMaxWarps];  // byte offset of each warp's result in shared memory, -1 if it has none
    std::int32_t line[6];               // what line.cuh keeps
};

// The rings of a CTA's warps.
struct RingShape {
    std::int32_t key_bytes;  // the largest K page that the map may hold
    std::int32_t value_bytes;
    std::int32_t warps;
    std::int32_t stages;  // per warp
    std::int32_t room_bytes;

    HSB_HOST_DEVICE int stage_bytes() const { return key_bytes + value_bytes; }
    HSB_HOST_DEVICE int ring_bytes() const { return room_at(warps); }
    HSB_HOST_DEVICE int room_at(int warp) const { return warps * stages * stage_bytes() + warp * room_bytes; }
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
// `room_bytes`: of each warp, beside its stages; counted as if each stage had a warp. `most`: stages of a warp; pages of int4
// take more arithmetic than they take time to come, and more that are asked for at once only come later.
constexpr RingShape choose_ring(int key_bytes, int value_bytes, int shared_limit, int max_warps, int pages_per_part,
                                int group, int room_bytes = 0, int most = kMaxStages) {
    int all = kMaxWarps * kMaxStages;
    while (all > 1 && all * (key_bytes + value_bytes + room_bytes) + RingShape::tail_bytes(all) > shared_limit) --all;
    int warps = all;
    if (warps > max_warps) warps = max_warps;
    const int useful = pages_per_part > group ? pages_per_part : group;
    if (warps > useful) warps = useful;
    int stages = all / warps;
    if (stages > most) stages = most;
    const bool left = warps * stages * 3 < all * 2 && stages < most && pages_per_part > warps;
    const int fewer = all / (stages + 1) / 4 * 4;
    if (left && fewer >= group) return {key_bytes, value_bytes, fewer, stages + 1, room_bytes};
    return {key_bytes, value_bytes, warps, stages, room_bytes};
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
static_assert(choose_ring(3072, 3072, kSharedLimitSm90, 12, 100, 4, 0, 1).stages == 1,
              "2:4 pages of int4 on sm_90: 12 warps of a stage of 6 KiB");

static_assert(choose_ring(9216, 9216, kSharedLimitSm90, 12, 100, 4, 320).warps == 12 &&
                  choose_ring(16384, 16384, kSharedLimitSm90, 12, 100, 4, 320).warps == 7,
              "with V along head_dim as many, for groups of 4");

// ---- clusters for each kv head (sm_90 and newer) ---------------------------------------------------------------------
//
// Clusters of up to 8 CTAs have a kv head each, or several clusters one head: its blocks are cut into one run for each CTA.
// Results of a cluster meet in shared memory (sm90/exchange.cuh), those of several in L2. No CTA looks for its head.
//
// A cluster lies within a group of multiprocessors, and these are of different sizes: how many clusters run at once is
// asked of the driver (sm90/decode_head.cuh).

constexpr int kMaxRanks = 8;

// Of each kv head: clusters, and CTAs of each.
struct HeadPlan {
    std::int32_t clusters;
    std::int32_t ranks;

    constexpr int parts() const { return clusters * ranks; }
};

// Blocks of a CTA up to which one cluster a head is better than several, whose results meet in L2, though it leaves
// multiprocessors idle.
constexpr int kFewBlocks = 32;

// The plan for so many heads of so many blocks; at_once(ranks): how many clusters of that size run at once. No parts where
// more than 1 in 16 multiprocessors would be idle for nothing.
template <class AtOnce>
constexpr HeadPlan plan_of(int heads, int blocks, int multiprocessors, AtOnce &&at_once) {
    const int most = kMaxRanks < blocks ? kMaxRanks : blocks;
    if (blocks <= kMaxRanks * kFewBlocks && at_once(most) >= heads) return {1, most};
    HeadPlan best{0, 0};
    for (int ranks = most; ranks > 0; --ranks) {
        const int room = at_once(ranks) / heads, useful = blocks / ranks;
        const HeadPlan plan{room < useful ? room : useful, ranks};
        if (plan.parts() > best.parts()) best = plan;
    }
    return best.parts() * heads * 16 >= multiprocessors * 15 ? best : HeadPlan{0, 0};
}

constexpr bool is_plan(const HeadPlan &plan, int clusters, int ranks) {
    return plan.clusters == clusters && plan.ranks == ranks;
}
// What an H100 answered: 132 multiprocessors in groups of 14 to 18.
constexpr int at_once_on_h100(int ranks) {
    constexpr int kClusters[kMaxRanks] = {132, 66, 39, 30, 22, 17, 15, 15};
    return kClusters[ranks - 1];
}
static_assert(is_plan(plan_of(8, 2048, 132, at_once_on_h100), 8, 2),
              "128 CTAs: 15 clusters of 8 are too few for two a head");
static_assert(is_plan(plan_of(8, 256, 132, at_once_on_h100), 1, 8), "16k tokens");
static_assert(is_plan(plan_of(8, 3, 132, at_once_on_h100), 1, 3), "no CTA without a block");
static_assert(is_plan(plan_of(64, 512, 132, at_once_on_h100), 1, 2), "8 x 32k tokens");
static_assert(plan_of(100, 512, 132, at_once_on_h100).parts() == 0, "32 multiprocessors would be idle");

// The cut of a head's blocks into one run a CTA: the first `longer` runs are one longer than `shorter`.
struct HeadCut {
    std::int32_t shorter;
    std::int32_t longer;

    HSB_HOST_DEVICE static HeadCut of(int blocks, int parts) { return {blocks / parts, blocks % parts}; }
    HSB_HOST_DEVICE std::int32_t begin(std::int32_t part) const {
        return part * shorter + (part < longer ? part : longer);
    }
    HSB_HOST_DEVICE std::int32_t longest() const { return shorter + (longer > 0); }
};

// What a CTA of a cluster keeps in shared memory behind its ring:
//
//   | out f32 [ranks][slice] | stats {max, sum} f32x2 [ranks][group] | mbarrier, last u32 | score f32 [16] | largest f32 [warps] |
//
// out and stats: of the slice of the head's [group][head_dim] outputs that the rank finishes, from all ranks. Before any is
// sent, the queries stand in their place.
//
// Of several clusters of a head, each leaves its slices in the workspace, as the head's partial results [group][head_dim] and
// stats [group]; who comes last to a slice finishes it.
struct Exchange {
    std::int32_t clusters;  // of a head
    std::int32_t ranks;
    std::int32_t group;
    std::int32_t slice;  // outputs, even; the last ranks may have fewer, or none
    std::int32_t out_bytes;
    float inverse_slice;

    static Exchange of(const HeadPlan &plan, int group, int head_dim, int query_bytes) {
        const int ranks = plan.ranks, outputs = group * head_dim;
        const int slice = (outputs / 2 + ranks - 1) / ranks * 2;
        const int out_bytes = ranks * slice * static_cast<int>(sizeof(float));
        return {plan.clusters,
                ranks,
                group,
                slice,
                out_bytes > query_bytes ? out_bytes : query_bytes,
                1.0f / static_cast<float>(slice)};
    }
    // The rank whose slice an output is in.
    HSB_HOST_DEVICE int rank_of(int output) const {
        return static_cast<int>((static_cast<float>(output) + 0.5f) * inverse_slice);
    }

    HSB_HOST_DEVICE int stats_at() const { return out_bytes; }
    HSB_HOST_DEVICE int barrier_at() const { return stats_at() + ranks * group * kStatsBytes; }
    HSB_HOST_DEVICE int last_at() const { return barrier_at() + static_cast<int>(sizeof(std::uint64_t)); }
    HSB_HOST_DEVICE int score_at() const { return last_at() + static_cast<int>(sizeof(std::uint64_t)); }
    HSB_HOST_DEVICE int largest_at() const { return score_at() + kMostGroup * static_cast<int>(sizeof(float)); }
    HSB_HOST_DEVICE int bytes() const { return largest_at() + kMaxWarps * static_cast<int>(sizeof(float)); }

    static constexpr int kStatsBytes = 2 * sizeof(float);
    static constexpr int kMostGroup = 16;
};

}  // namespace hsb::cuda::decode

// How prefill on the sm80 path is cut, and what a block of threads keeps in shared memory.
//
// A CTA is one tile of consecutive queries of one query head; each of its warps has a slice of them and runs over all
// pages that its own queries see. CTAs start in the order of their index, so the tiles that see most tokens come first,
// those of all heads, and the heads of a group, which read the same pages, side by side:
//
//   CTA     0               1               ..    q_heads - 1         q_heads
//           last tile,      last tile,            last tile,          last tile but one,    ..
//           head 0          head 1                last head           head 0
//
// Shared memory is mostly one ring of stages, each a K page and a V page as they lie in the pools, for all warps of the
// CTA; at the end, results take the place of the stages:
//
//   | WarpReferences | stage 0: K, V | stage 1: K, V | .. | StageBarriers [stages] |
#pragma once

#include "cuda/page.cuh"
#include "cuda/shared_limit.h"

namespace hsb::cuda::prefill::sm80 {

// Compile-time shape of a CTA.
template <int Tiles_, int Warps_, int Ctas_>
struct QueryTile {
    static constexpr int kTiles = Tiles_;  // of 8 queries, per warp
    static constexpr int kWarps = Warps_;
    static constexpr int kCtas = Ctas_;  // per multiprocessor
    static constexpr int kWarpQueries = kTiles * 8;
    static constexpr int kQueries = kWarps * kWarpQueries;
    static constexpr int kThreads = kWarps * 32;
};

// 24 queries a warp are as many as registers allow; two CTAs of 4 warps were 5 % faster than one of 8 (H200).
using Tile = QueryTile<3, 4, 2>;

// The references of each warp's queries, once they are large (softmax.cuh).
template <class Tile>
struct WarpReferences {
    float of[Tile::kWarps][Tile::kWarpQueries];
};

struct StageBarriers {
    std::uint64_t full, empty;  // mbarriers: the pages have come; all are done with them
};
constexpr int kBarrierBytes = sizeof(StageBarriers);
static_assert(kBarrierBytes == 16, "as the instruction set has them");

struct RingShape {
    static constexpr int kMax = 4;   // more in flight gains nothing: arithmetic is the limit
    static constexpr int kHeld = 2;  // by a warp: K of the next page is asked of while V of the last is
    static constexpr int kMin = kHeld + 1;
    static constexpr int kAlign = 128;

    std::int32_t key_bytes;  // the largest K page that the map may hold
    std::int32_t value_bytes;
    std::int32_t stages;

    HSB_HOST_DEVICE constexpr int stage_bytes() const { return key_bytes + value_bytes; }
    HSB_HOST_DEVICE constexpr int ring_bytes() const { return stages * stage_bytes(); }
    HSB_HOST_DEVICE constexpr int shared_bytes() const { return ring_bytes() + stages * kBarrierBytes; }
};

// As many stages as fit. `shared_limit` is what one CTA may have; where several share a multiprocessor, each loses the
// 1 KiB that the system keeps per CTA.
constexpr RingShape choose_ring(int key_bytes, int value_bytes, int shared_limit, int ctas) {
    constexpr int kSystemBytes = 1 << 10;
    const int limit = (shared_limit + kSystemBytes) / ctas - kSystemBytes;
    RingShape s{key_bytes, value_bytes, RingShape::kMax};
    while (s.stages > 0 && s.shared_bytes() > limit) --s.stages;
    return s;
}
static_assert(choose_ring(9216, 9216, kSharedLimitSm89, 1).stages == 4, "2:4 pages on sm_89");
static_assert(choose_ring(16384, 16384, kSharedLimitSm89, 1).stages == 3, "dense pages on sm_89");
static_assert(choose_ring(16384, 16384, kSharedLimitSm90, 2).stages == 3, "dense pages on sm_90, two CTAs");

}  // namespace hsb::cuda::prefill::sm80

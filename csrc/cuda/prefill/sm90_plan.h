// How prefill on the sm90 path is cut, and what a block of threads keeps in shared memory.
//
// A CTA is one tile of consecutive queries of one query head: two consumer warpgroups of 96 queries each, and a
// producer warp that streams the pages which the tile sees. All tiles of a kv head come one after another, so that its
// pages stay in L2; within it the tiles that see most come first, and the heads of a group side by side:
//
//   CTA    0            ..   group - 1    group               ..
//          last tile,        last tile,   last tile but one,  ..      then the same for the next kv head
//          head 0            last head    head 0
//
// Pages come in runs of one kind, since what follows depends on whether K and V are 2:4: the run that page 0 belongs
// to, so that every query meets a token that it sees at once, then the others; ascending within a run. Softmax does not
// mind.
#pragma once

#include "cuda/page_pool.h"

namespace hsb::cuda::sm90 {

constexpr int kGroups = 2;           // consumer warpgroups
constexpr int kGroupQueries = 96;    // ptx/wgmma.cuh has this width
constexpr int kTileQueries = kGroups * kGroupQueries;
constexpr int kGroupThreads = 128;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;

// Of the 65,536 registers of a multiprocessor; ptxas compiles for an even share, the groups then trade.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert((kProducerRegisters + kGroups * kConsumerRegisters) * kGroupThreads <= 65536, "more than there are");

// A run's last pages may hold tokens that some query of the tile does not see: those at and after its first query.
constexpr int kEdgePages = kTileQueries / kBlock + 2;

// The kind of a pair of pages: bit 0, K is 2:4; bit 1, V is.
constexpr int kKinds = 4;

// Shared memory, in bytes from its start. Tiles are panels of 96 rows (queries) of 128 bytes, swizzled as page.cuh
// draws it.
//
//   | barriers, small things | Q [groups] | P [groups][2 pages] | K pages [stages] | V pages [stages] |
struct Layout {
    static constexpr int kMaxStages = 8;
    static constexpr int kKeyFull = 0, kKeyEmpty = 64, kValueFull = 128, kValueEmpty = 192;  // barriers, u64 [stages]
    static constexpr int kCounts = 256;     // i32 [kinds]: pages of each
    static constexpr int kPageAt = 272;     // i32 [stages]: which page is in a stage
    static constexpr int kRises = 304;      // u32 [groups][2]: whether a score passed its reference (sm90_softmax.cuh)
    static constexpr int kShift = 512;      // f32 [groups][queries]
    static constexpr int kQuery = 2048;
    static constexpr int kPanelBytes = kGroupQueries * 128;
    static_assert(kShift + kTileQueries * 4 <= kQuery, "small things do not fit");

    std::int32_t key_bytes;      // of a stage: multiples of 1024, which the swizzle counts from
    std::int32_t value_bytes;
    std::int32_t stages;

    HSB_HOST_DEVICE static constexpr int query(int group, int head_dim) {
        return kQuery + group * (head_dim / kPanelCols) * kPanelBytes;
    }
    HSB_HOST_DEVICE static constexpr int probability(int group, int head_dim) {
        return query(kGroups, head_dim) + group * 2 * kPanelBytes;
    }
    HSB_HOST_DEVICE constexpr int key(int stage, int head_dim) const {
        return probability(kGroups, head_dim) + stage * key_bytes;
    }
    HSB_HOST_DEVICE constexpr int value(int stage, int head_dim) const {
        return key(stages, head_dim) + stage * value_bytes;
    }
    HSB_HOST_DEVICE constexpr int bytes(int head_dim) const { return value(stages, head_dim); }
};

// As many stages as fit; 0 where not even two do.
inline Layout choose_layout(int key_page_bytes, int value_page_bytes, int head_dim, int shared_bytes) {
    const auto whole = [](int bytes) { return (bytes + 1023) / 1024 * 1024; };
    Layout layout{whole(key_page_bytes), whole(value_page_bytes), Layout::kMaxStages};
    while (layout.stages > 0 && layout.bytes(head_dim) > shared_bytes) --layout.stages;
    if (layout.stages < 2) layout.stages = 0;
    return layout;
}

struct Arguments {
    const void *q;             // [heads, q_len, head_dim]
    void *out;                 // [heads, q_len, head_dim]
    float *lse;                // [heads, q_len]
    PagePool k;
    PagePool v;
    Layout layout;
    std::int32_t q_len;
    std::int32_t seq;
    std::int32_t group;        // query heads per kv head
    std::int32_t tiles;        // per head
    float log2_scale;          // powers of 2 per unit of the scores; positive
    std::uint32_t flip;        // xor of a pair of q's values: their sign bits, or 0
    std::uint32_t never;       // 0, which the compiler does not know: branches on it order the code

    HSB_HOST_DEVICE int blocks() const { return (seq + kBlock - 1) / kBlock; }
    // Pages that some query of a tile sees.
    HSB_HOST_DEVICE int pages_of(int tile) const {
        const int end = (tile + 1) * kTileQueries < q_len ? (tile + 1) * kTileQueries : q_len;
        return (seq - q_len + end - 1) / kBlock + 1;
    }
};

}  // namespace hsb::cuda::sm90

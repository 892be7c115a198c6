// How prefill on the sm90 path is cut; shared_memory.h says what a block of threads keeps in shared memory.
//
// A CTA is one tile of consecutive queries of one query head: two or three consumer warpgroups (struct Cut), and a
// producer warp that streams the pages which the tile sees. All tiles of a kv head come one after another, so that its
// pages stay in L2; within it the tiles that see most come first, and the heads of a group side by side:
//
//   CTA    0            ..   group - 1    group               ..
//          last tile,        last tile,   last tile but one,  ..      then the same for the next kv head
//          head 0            last head    head 0
//
// Pages come in runs of one kind, since what follows depends on whether K and V are 2:4: the run that page 0 belongs
// to, so that every query meets a token that it sees at once, then the others; ascending within a run. Softmax does not
// mind. Evicted blocks have no pages: a page's number is its place among those of its head, and what tells the future,
// its block's number (cuda/prefill/position.cuh), goes with it.
#pragma once

#include <type_traits>

#include "cuda/page_pool.cuh"
#include "cuda/prefill/position.cuh"

namespace hsb::cuda::prefill::sm90 {

constexpr int kGroupThreads = 128;
constexpr int kSwizzleAlign = 1024;  // what wgmma's 128-byte swizzle counts from

// How many consumer warpgroups, and how many queries each of them has (widths that ptx/wgmma.cuh has).
template <int Groups_, int GroupQueries_>
struct Cut {
    static constexpr int kGroups = Groups_, kGroupQueries = GroupQueries_;
    static constexpr int kTileQueries = kGroups * kGroupQueries;
    static constexpr int kThreads = (kGroups + 1) * kGroupThreads;

    // Of the 65,536 registers of a multiprocessor; ptxas compiles for an even share, the groups then trade.
    static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32, kConsumerRegisters = kGroups == 2 ? 240 : 160;
    static_assert(kProducerRegisters + kGroups * kConsumerRegisters <= 65536 / kThreads / 8 * 8 * (kGroups + 1),
                  "more than a CTA starts with");

    // A run's last pages may hold tokens that some query of the tile does not see: those at and after its first query.
    static constexpr int kEdgePages = kTileQueries / kBlock + 2;
};
using TwoGroups = Cut<2, 96>;
using ThreeGroups = Cut<3, 72>;

// The kinds of a K page and the V page that goes with it, as one number. A kernel is for pairs of one kind, or of any.
HSB_HOST_DEVICE constexpr int pair_kind(hsb_block_kind key, hsb_block_kind value) {
    return static_cast<int>(key) | static_cast<int>(value) << kUsedKindBits;
}
constexpr int kPairKinds = 1 << 2 * kUsedKindBits, kAnyPair = kPairKinds;
HSB_HOST_DEVICE constexpr int key_number(int pair) { return pair & ((1 << kUsedKindBits) - 1); }
HSB_HOST_DEVICE constexpr int value_number(int pair) { return pair >> kUsedKindBits; }
// Not all numbers are pairs, unless the number of kinds is a power of 2.
HSB_HOST_DEVICE constexpr bool is_pair(int pair) {
    return key_number(pair) < BlockKinds::kCount && value_number(pair) < BlockKinds::kCount;
}
constexpr int kLastPair = (BlockKinds::kCount - 1) << kUsedKindBits | (BlockKinds::kCount - 1);
static_assert(is_pair(kLastPair) && kLastPair < kPairKinds);

template <int Pair>
using KeyKind = KindAt<key_number(Pair)>;
template <int Pair>
using ValueKind = KindAt<value_number(Pair)>;

// By measurement (csrc/README.md). Three groups hide more, two move fewer bytes and have registers for all kinds.
constexpr bool takes_three_groups(bool one_kind, bool any_sparse) { return one_kind && any_sparse; }
template <int Pair>
constexpr bool takes_three_groups() {
    if constexpr (is_pair(Pair))
        return takes_three_groups(true, KeyKind<Pair>::kIsSparse || ValueKind<Pair>::kIsSparse);
    return false;
}
template <int Pair>
using CutFor = std::conditional_t<takes_three_groups<Pair>(), ThreeGroups, TwoGroups>;

// The ring: stages for K pages, and as many for V pages.
struct RingShape {
    static constexpr int kMaxStages = 8;

    std::int32_t key_bytes;  // of a stage: multiples of kSwizzleAlign
    std::int32_t value_bytes;
    std::int32_t stages;
};

struct Arguments {
    const void *q;  // [heads, q_len, head_dim]
    void *out;      // [heads, q_len, head_dim]
    float *lse;     // [heads, q_len]
    PagePool k;
    PagePool v;
    Positions positions;
    RingShape ring;
    std::int32_t q_len;
    std::int32_t seq;
    std::int32_t group;        // query heads per kv head
    std::int32_t tiles;        // per head
    float log2_scale;          // powers of 2 per unit of the scores; positive
    float reserve;             // prefill_reserve()
    float margin;              // kPrefillSm90Margin + reserve
    std::uint32_t largest;     // largest_probabilities() (cuda/reserve.cuh)
    std::uint32_t flip;        // xor of a pair of q's values: their sign bits, or 0
    std::uint32_t never;       // 0, which the compiler does not know: see ptx/order.cuh
    const float *key_shift;    // [batch, kv_heads, head_dim], or null: what lse gets back, given_scale * q . key_shift
    const float *value_shift;  // likewise: what out gets back
    float given_scale;         // of the scores, with its sign
    bool mirror;               // K's channels are in the mirror order
    Extents extents;

    HSB_HOST_DEVICE bool has_one_kind() const { return k.has_one_kind() && v.has_one_kind(); }
    // Tokens before the first query of a head.
    __device__ __forceinline__ int past(int head) const { return tokens_before(*this, head); }
    // Pages that some query of a head's tile sees, of a kv head whose first is `first_page` among all. All lanes of a warp
    // call this.
    template <class Cut>
    __device__ __forceinline__ int pages_of(int head, int tile, int first_page) const {
        const int queries = extents.lengths ? extents.queries(head, q_len) : q_len;
        const int end = (tile + 1) * Cut::kTileQueries < queries ? (tile + 1) * Cut::kTileQueries : queries;
        const int seen = past(head) + end;  // tokens that the last of them sees
        if (end <= tile * Cut::kTileQueries || seen <= 0) return 0;
        return positions.before(first_page, (seen - 1) / kBlock + 1);
    }
};

}  // namespace hsb::cuda::prefill::sm90

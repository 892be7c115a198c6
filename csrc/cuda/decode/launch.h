// What the launcher (decode.cu) calls and each file of an instantiation (instantiation.cu.in) holds one of.
#pragma once

#include "cuda/page_pool.cuh"
#include "cuda/runtime.h"
#include "params.h"
#include "plan.h"

namespace hsb::cuda::decode {

// Of a page of each hsb_block_kind.
struct PageBytes {
    std::int32_t of_kind[kBlockKinds];
};

struct Arguments {
    const void *q;  // [batch, q_heads, head_dim]
    void *out;      // [batch, q_heads, head_dim]
    float *lse;     // [batch, q_heads]
    PagePool k;
    PagePool v;
    unsigned *counters;  // [batch * q_heads], or [batch * kv_heads][kMaxRanks] of clusters
    float *partials;     // [parts][2][partial_floats]
    Partition partition;
    RingShape ring;
    std::int32_t blocks;      // per kv head
    std::int32_t last_valid;  // tokens in the last block, 1 to 64
    std::int32_t group;       // query heads per kv head
    float scale;              // of the scores; not negative, q's sign is flipped instead
    float log2_scale;
    float margin;            // kDecodeMargin in units of the scores
    float reserve;           // powers of 2 by which probabilities are kept lower: sum_reserve() and kDecodeMargin, or 0
    std::uint32_t flip;      // xor of a pair of q's values: their sign bits, or 0
    const float *key_shift;  // [batch, kv_heads, head_dim], or null: what lse gets back, given_scale * q . key_shift
    const float *value_shift;  // likewise: what out gets back
    float given_scale;         // of the scores, with its sign
    const float *key_scale;    // [batch, kv_heads, head_dim]: of stored elements that have one (hsb_pages), or null
    const float *value_scale;
    HeadCut cut;                  // of a plan by kv heads, and
    Exchange exchange;            // how their results meet
    bool prefetch;                // whether L2 is asked for what a CTA's first head takes before any page is
    bool mirror;                  // K's channels are in the mirror order
    const std::int32_t *lengths;  // [batch]: tokens of each sequence, of a cache that grows; null: all have as many
    std::int32_t batch;
    std::int32_t kv_heads;
    // Read where K's and V's elements differ:
    std::int32_t key_stored;  // an hsb_stored
    std::int32_t value_stored;
    PageBytes key_bytes, value_bytes;
    float value_margin;  // V's Stored::kMargin
};

// In the place of a Stored: K's and V's are different ones, which arguments tell (elements.cuh).
struct StoredApart;

// Along which dimension V's groups run (value_axis.cuh).
struct AlongTokens;
struct AlongHeadDim;

// Room for one of K's or V's pages in a stage: for the largest that is copied, and half of what a warp leaves for the merge, in
// the place of a stage.
template <class Stored, class Result>
int stage_page_bytes(const hsb_pages &pages, int head_dim) {
    constexpr int kHalf = static_cast<int>((sizeof(Result) / 2 + kStageAlign - 1) / kStageAlign * kStageAlign);
    const int largest = largest_page_bytes<Stored>(pages, head_dim);
    return largest > kHalf ? largest : kHalf;
}

// Launches the kernel for groups of up to Tiles * 8 query heads and pages stored as Stored says. `a` lacks only what depends
// on the pages' bytes: stages.
template <class T, int HeadDim, int Tiles, class Stored, class Axis>
void launch_decode(const hsb_decode_params &p, Arguments a, const Device &device);

}  // namespace hsb::cuda::decode

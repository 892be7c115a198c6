// What the launcher (prefill.cu) calls and each file of an instantiation (instantiation.cu.in) holds one of.
#pragma once

#include "cuda/page_pool.cuh"
#include "cuda/prefill/position.cuh"
#include "cuda/runtime.h"
#include "params.h"
#include "plan.h"

namespace hsb::cuda::prefill::sm80 {

struct Arguments {
    const void *q;  // [batch, q_heads, q_len, head_dim]
    void *out;      // [batch, q_heads, q_len, head_dim]
    float *lse;     // [batch, q_heads, q_len]
    PagePool k;
    PagePool v;
    Positions positions;
    RingShape ring;
    std::int32_t q_len;
    std::int32_t seq;
    std::int32_t heads;  // batch * q_heads
    std::int32_t group;  // query heads per kv head
    std::int32_t tiles;  // per head
    float scale;         // powers of 2 per unit of the product q k; positive, q's sign is flipped instead
    float inverse_scale;
    float reserve;             // prefill_reserve() (cuda/reserve.cuh)
    float margin;              // kPrefillSm80Margin + reserve
    std::uint32_t largest;     // largest_probabilities()
    std::uint32_t flip;        // xor of a pair of q's values: their sign bits, or 0
    const float *key_shift;    // [batch, kv_heads, head_dim], or null: what lse gets back, given_scale * q . key_shift
    const float *value_shift;  // likewise: what out gets back
    float given_scale;         // of the scores, with its sign
    bool mirror;               // K's channels are in the mirror order
    Extents extents;
};

// `a` lacks only what depends on the pages' bytes: ring and tiles. `LooksUp`: whether some blocks have no pages, or the
// device alone knows how long sequences are.
template <class T, int HeadDim, bool LooksUp>
void launch_prefill(const hsb_prefill_params &p, Arguments a, const Device &device);

}  // namespace hsb::cuda::prefill::sm80

// How prefill over e4m3 pages is cut: as over 16-bit pages (../plan.h), and here only what differs.
#pragma once

#include <type_traits>

#include "cuda/prefill/sm90/plan.h"

namespace hsb::cuda::prefill::sm90::fp8 {

using Kinds = StoredFp8::Kinds;
template <int Pair>
using KeyKind = KindAt<key_number(Pair), Kinds>;
template <int Pair>
using ValueKind = KindAt<value_number(Pair), Kinds>;

// Pairs that have a kernel of their own; all others are kAnyPair's.
HSB_HOST_DEVICE constexpr bool has_own_kernel(int pair) {
    return is_pair(pair) && key_number(pair) == value_number(pair);
}

// By measurement (docs/kernels/cuda-prefill-sm90.md); for pages of any kind three groups have no registers.
template <int Pair>
using CutFor = std::conditional_t<Pair == kAnyPair, TwoGroups, ThreeGroups>;

// O^T's sums move from the tensor cores' registers to fp32 in shared memory after so many pages, as the tensor cores keep 14
// bits of them (ptx/wgmma.cuh). A group does it half or a third of the way after the one before.
constexpr int kMovePages = 64;

struct Arguments : sm90::Arguments {
    const float *key_scale;    // [batch, kv_heads, head_dim], in the order of q's channels
    const float *value_scale;  // [batch, kv_heads, head_dim]
    float signed_log2_scale;   // log2_scale with the sign of the scale
    std::int32_t moved;        // where moved sums are in shared memory; 0: no tile has so many pages that it moves any
};

}  // namespace hsb::cuda::prefill::sm90::fp8

// How prefill over e4m3 pages is cut: as over 16-bit pages (../plan.h), and here only what differs.
#pragma once

#include <type_traits>

#include "cuda/kinds/fp8_narrowed.cuh"
#include "cuda/prefill/sm90/plan.h"

namespace hsb::cuda::prefill::sm90::fp8 {

using Kinds = Types<Fp8DenseKind, Fp8Sparse24Kind, NarrowedKind>;
static_assert(are_in_order<Kinds>() && Kinds::kCount == StoredFp8::Kinds::kCount, "as a map of such pages says");

// By whose products a kind goes.
HSB_HOST_DEVICE constexpr hsb_block_kind multiplied_as(hsb_block_kind kind) {
    return kind == NarrowedKind::kKind ? Fp8DenseKind::kKind : kind;
}

template <int Pair>
using KeyKind = KindAt<key_number(Pair), Kinds>;
template <int Pair>
using ValueKind = KindAt<value_number(Pair), Kinds>;

// The kind that all of a pool's pages multiply as; that of none where they differ.
inline int multiplied_as(const PagePool &pool) {
    int found = -1;
    bool alike = true;
    const auto look = [&](auto kind) {
        if (!pool.pools[kind.kKind]) return;
        alike = alike && (found < 0 || found == multiplied_as(kind.kKind));
        found = multiplied_as(kind.kKind);
    };
    for_each_kind(look, Kinds());
    return alike ? found : -1;
}

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

// What ../pages.cuh asks of a kernel's pages.
template <int Pair>
struct PagesOf {
    using Kinds = fp8::Kinds;
    HSB_HOST_DEVICE static hsb_block_kind multiplied_as(hsb_block_kind kind) { return fp8::multiplied_as(kind); }
    HSB_HOST_DEVICE static bool are_alike(const sm90::Arguments &) { return Pair != kAnyPair; }
};

}  // namespace hsb::cuda::prefill::sm90::fp8

// The kinds of blocks: kernels go over this list, and name none of them. A new one: its files in kinds/, its name here, and
// the blocks that become it (compress/choose.cuh); prefill/sm90/instantiation.cu.in lists its kernels.
//
// A kind is a type, and says what it is to each kernel:
//
//   kKind              its hsb_block_kind, its place in the list
//   kIsSparse          whether tensor cores take its A as sparse, and only half as long
//   page_bytes         of a page of a head_dim
//   pool               where its pages lie, by a struct of params.h; pool_page_bytes: how large the caller thinks they are
//   multiply           c += A b of one warp, tensor core strips of 16 rows (page_product.cuh)
//   interleave         the same of a part of A, with other work between (prefill/sm80/product.cuh)
//   KeyRegisters, load_key, multiply_key; ValueRegisters, load_value, multiply_value
//                      the products of a warpgroup, and what they take besides the page (prefill/sm90/consumer.cuh)
//   store_key; first_token, store_value
//                      what a warp holds of a block, to its page (compress/strip.cuh)
#pragma once

#include <utility>

#include "block_map.h"
#include "cuda/kinds/dense.cuh"
#include "cuda/kinds/sparse_2_4.cuh"
#include "cuda/types.h"

namespace hsb::cuda {

using BlockKinds = Types<DenseKind, Sparse24Kind>;

template <int Number>
using KindAt = TypeAt<Number, BlockKinds>;

template <int... Number>
constexpr bool are_in_order(std::integer_sequence<int, Number...>) {
    return ((KindAt<Number>::kKind == Number) && ...);
}
static_assert(BlockKinds::kCount == kBlockKinds, "all kinds that a map may hold");
static_assert(are_in_order(std::make_integer_sequence<int, kBlockKinds>()), "each at its number");

// run(Kind()) for a kind that is known only now. What is not one of the others is the first.
template <int Last = kBlockKinds - 1, class Run>
__device__ __forceinline__ decltype(auto) with_kind(hsb_block_kind kind, Run &&run) {
    if constexpr (Last == 0) {
        return run(KindAt<0>());
    } else {
        if (kind == KindAt<Last>::kKind) return run(KindAt<Last>());
        return with_kind<Last - 1>(kind, run);
    }
}

// The same of a number that costs next to nothing: all are computed and one is selected, without a branch.
template <int Last = kBlockKinds - 1, class Run>
__device__ __forceinline__ int select_by_kind(hsb_block_kind kind, Run &&run) {
    const int of_last = run(KindAt<Last>());
    if constexpr (Last == 0) {
        return of_last;
    } else {
        const int of_others = select_by_kind<Last - 1>(kind, run);
        return kind == KindAt<Last>::kKind ? of_last : of_others;
    }
}

// run(Kind()) for each, on the host.
template <class Run, class... Kind>
void for_each_kind(Run &&run, Types<Kind...>) {
    (run(Kind()), ...);
}
template <class Run>
void for_each_kind(Run &&run) {
    for_each_kind(run, BlockKinds());
}

template <class... Kind>
HSB_HOST_DEVICE constexpr int largest_page_bytes(int head_dim, Types<Kind...>) {
    int largest = 0;
    ((largest = Kind::page_bytes(head_dim) > largest ? Kind::page_bytes(head_dim) : largest), ...);
    return largest;
}
template <class... Kind>
HSB_HOST_DEVICE constexpr int smallest_page_bytes(int head_dim, Types<Kind...> all) {
    int smallest = largest_page_bytes(head_dim, all);
    ((smallest = Kind::page_bytes(head_dim) < smallest ? Kind::page_bytes(head_dim) : smallest), ...);
    return smallest;
}
// Of any kind.
HSB_HOST_DEVICE constexpr int largest_page_bytes(int head_dim) { return largest_page_bytes(head_dim, BlockKinds()); }
HSB_HOST_DEVICE constexpr int smallest_page_bytes(int head_dim) { return smallest_page_bytes(head_dim, BlockKinds()); }

}  // namespace hsb::cuda

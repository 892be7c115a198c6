// The kinds of blocks: kernels go over these lists, and name none of them. A new one: its files in kinds/, its name here, and
// the blocks that become it (compress/choose.cuh); prefill/sm90/instantiation.cu.in lists its kernels.
//
// A kind is a type, and says what it is to each kernel:
//
//   kKind              its hsb_block_kind, its place in the list
//   kIsSparse          whether tensor cores take its A as sparse, and only half as long
//   kStays             whether decode reads its pages where they lie, by what a stage says of where that is
//   page_bytes         of a page of a head_dim
//   pool               where its pages lie, by a struct of params.h; pool_page_bytes: how large the caller thinks they are;
//                      pages: how many a (batch, kv head) of a cache that grows has
//   multiply           c += A b of one warp, tensor core strips of 16 rows (page_product.cuh)
//   interleave         the same of a part of A, with other work between (prefill/sm80/product.cuh)
//   KeyRegisters, load_key, multiply_key; ValueRegisters, load_value, multiply_value
//                      the products of a warpgroup, and what they take besides the page (prefill/sm90/consumer.cuh)
//   store_key; first_token, store_value; store_rows
//                      what a warp holds of a block of K, of V, of V in groups along head_dim, to its page (compress/strip.cuh)
//
// There is a list for each type of stored elements (hsb_stored), of the kinds that a map of such pages may hold, each at its
// number: a kernel is made for one list, never for one entry of a map.
#pragma once

#include <utility>

#include "block_map.h"
#include "cuda/element.cuh"
#include "cuda/kinds/dense.cuh"
#include "cuda/kinds/fp8_dense.cuh"
#include "cuda/kinds/fp8_sparse_2_4.cuh"
#include "cuda/kinds/int4_dense.cuh"
#include "cuda/kinds/int4_sparse_2_4.cuh"
#include "cuda/kinds/int4_wide.cuh"
#include "cuda/kinds/sparse_2_4.cuh"
#include "cuda/kinds/wide.cuh"
#include "cuda/softmax_margin.h"
#include "cuda/types.h"

namespace hsb::cuda {

// What pages are stored as: the kinds of their blocks, by hsb_stored; of a cache that grows the kind of blocks that are not
// judged yet (Open), and those that they are packed as then (Judged); whether channels have a scale, and pages their own besides;
// which token of a block a row of K's page is; and the element type of a warp's products where q, K, V and the output are T.
//
// Decode asks for more: what a sum of products counts (kUnit); the power of 2 just above a kv head's largest product of a
// query and a channel's scale, where there are any (kQueryPower); its margin (softmax_margin.h), and by how many powers of 2
// its probabilities are kept lower besides (kReserve); and the most stages of a warp's ring (kStages; decode/plan.h).
struct Stored16 {
    static constexpr hsb_stored kStored = HSB_STORED_16;
    static constexpr bool kHasScale = false, kPagesHaveScales = false;
    static constexpr float kUnit = 1.0f, kMargin = kDecodeMargin, kReserve = 0.0f;
    static constexpr int kStages = 4;
    using Kinds = Types<DenseKind, Sparse24Kind>;
    using Open = DenseKind;
    using Judged = Types<Sparse24Kind>;
    template <class T>
    using Product = T;
    HSB_HOST_DEVICE static constexpr int token_of_row(int row) { return row; }
};
struct StoredFp8 {
    static constexpr hsb_stored kStored = HSB_STORED_FP8;
    static constexpr bool kHasScale = true, kPagesHaveScales = false;
    static constexpr float kUnit = 1.0f, kMargin = kDecodeMargin, kReserve = 0.0f;
    static constexpr int kQueryPower = 14, kStages = 4;
    using Kinds = Types<Fp8DenseKind, Fp8Sparse24Kind, WideKind>;
    using Open = WideKind;
    using Judged = Types<Fp8DenseKind, Fp8Sparse24Kind>;
    template <class T>
    using Product = OfE4m3;
    HSB_HOST_DEVICE static constexpr int token_of_row(int row) { return fp8_token_of_row(row); }
};
// Only decode takes them. Pages' scales, up to fp16's largest, go with queries and probabilities, which stay below 1.
struct StoredInt4 {
    static constexpr hsb_stored kStored = HSB_STORED_INT4;
    static constexpr bool kHasScale = true, kPagesHaveScales = true;
    static constexpr float kUnit = kInt4Unit, kMargin = 4.0f, kReserve = kMargin;
    static constexpr int kQueryPower = 0, kStages = 1;
    using Kinds = Types<Int4DenseKind, Int4Sparse24Kind, Int4WideKind>;
    using Open = Int4WideKind;
    using Judged = Types<Int4DenseKind, Int4Sparse24Kind>;
    template <class T>
    using Product = OfE4m3;
    HSB_HOST_DEVICE static constexpr int token_of_row(int row) { return fp8_token_of_row(row); }
};

// Of kernels that take elements of 16 bits alone.
using BlockKinds = Stored16::Kinds;

template <int Number, class Kinds = BlockKinds>
using KindAt = TypeAt<Number, Kinds>;

template <class Kinds, int... Number>
constexpr bool are_in_order(std::integer_sequence<int, Number...>) {
    return ((KindAt<Number, Kinds>::kKind == Number) && ...);
}
template <class Kinds>
constexpr bool are_in_order() {
    return are_in_order<Kinds>(std::make_integer_sequence<int, Kinds::kCount>());
}
static_assert(are_in_order<Stored16::Kinds>() && are_in_order<StoredFp8::Kinds>() && are_in_order<StoredInt4::Kinds>(),
              "each kind at its number");
static_assert(StoredFp8::Kinds::kCount == kBlockKinds, "every kind is in a list");

// The bits that kernels keep of a kind of a list.
template <class Kinds>
constexpr int kKindBits = kind_bits(Kinds::kCount);
constexpr int kUsedKindBits = kKindBits<BlockKinds>;

// run(Kind()) for a kind that is known only now. What is not one of the others is the first.
template <class Kinds = BlockKinds, int Last = Kinds::kCount - 1, class Run>
__device__ __forceinline__ decltype(auto) with_kind(hsb_block_kind kind, Run &&run) {
    if constexpr (Last == 0) {
        return run(KindAt<0, Kinds>());
    } else {
        if (kind == KindAt<Last, Kinds>::kKind) return run(KindAt<Last, Kinds>());
        return with_kind<Kinds, Last - 1>(kind, run);
    }
}

// The same of a number that costs next to nothing: all are computed and one is selected, without a branch.
template <class Kinds = BlockKinds, int Last = Kinds::kCount - 1, class Run>
__device__ __forceinline__ int select_by_kind(hsb_block_kind kind, Run &&run) {
    const int of_last = run(KindAt<Last, Kinds>());
    if constexpr (Last == 0) {
        return of_last;
    } else {
        const int of_others = select_by_kind<Kinds, Last - 1>(kind, run);
        return kind == KindAt<Last, Kinds>::kKind ? of_last : of_others;
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

// What a copy of a page takes: nothing of one that stays.
template <class Kind>
HSB_HOST_DEVICE constexpr int copied_bytes(int head_dim) {
    return Kind::kStays ? 0 : Kind::page_bytes(head_dim);
}
template <class... Kind>
HSB_HOST_DEVICE constexpr int largest_page_bytes(int head_dim, Types<Kind...>) {
    int largest = 0;
    ((largest = copied_bytes<Kind>(head_dim) > largest ? copied_bytes<Kind>(head_dim) : largest), ...);
    return largest;
}
template <class... Kind>
HSB_HOST_DEVICE constexpr int smallest_page_bytes(int head_dim, Types<Kind...> all) {
    int smallest = largest_page_bytes(head_dim, all);
    ((smallest = Kind::page_bytes(head_dim) < smallest ? Kind::page_bytes(head_dim) : smallest), ...);
    return smallest;
}
// Of any kind of 16 bits.
HSB_HOST_DEVICE constexpr int largest_page_bytes(int head_dim) { return largest_page_bytes(head_dim, BlockKinds()); }
HSB_HOST_DEVICE constexpr int smallest_page_bytes(int head_dim) { return smallest_page_bytes(head_dim, BlockKinds()); }

}  // namespace hsb::cuda

// The kinds of blocks that the CPU stores, as types, and the way from an hsb_block_kind to one of them.
//
// A kind is a struct in kinds/<kind>/page.h: its pages and their pool, and what scratch decode needs for them. What else
// kernels do with a page of a kind are functions that take the kind first, in the file named after the kernel:
//
//   compress.h   pack_page<Isa, operand>(kind, block, page, head_dim); pack_chosen_page(kind, ...); quantise_page(kind, ...) of
//                another kind's page
//   decode.h     score_page, weigh_page<Isa, Type, heads>(kind, ...); make_query_tables where query_floats() is not 0
//   prefill.h    unpacked_bytes, unpack_page; unpacked_kind: whose multiply_page(kind, ...) takes what was unpacked
//
// A new kind: these files, their name in an #include here, and its type in a list of those that a cache may hold, by what its
// elements are. What it lacks does not compile.
#pragma once

#include <type_traits>

#include "block_map.h"
#include "cpu/kinds/dense.h"
#include "cpu/kinds/int4.h"
#include "cpu/kinds/int4_rows.h"
#include "cpu/kinds/sparse_2_4.h"
#include "cpu/kinds/sparse_2_4_rows.h"
#include "cpu/kinds/wide.h"
#include "cpu/simd/half.h"

namespace hsb::cpu {

template <class... Kinds>
struct KindList {
    static constexpr int size = sizeof...(Kinds);
};
using BlockKinds = KindList<DenseKind, Sparse24Kind>;          // of elements of 16 bits, and all that compress packs
using AllKinds = KindList<DenseKind, Sparse24Kind, WideKind>;  // of e4m3
using QuantisedKinds = KindList<Int4DenseKind, Int4Sparse24Kind>;
using Int4Kinds = KindList<Int4DenseKind, Int4Sparse24Kind, WideKind>;
static_assert(AllKinds::size == kBlockKinds && Int4Kinds::size == kBlockKinds, "every hsb_block_kind, once");

// Type: of the values, a tag of cpu/simd/half.h.
template <class Type>
using KindsOf = std::conditional_t<std::is_same_v<Type, Int4>, Int4Kinds,
                                   std::conditional_t<Type::is_narrow, AllKinds, BlockKinds>>;

// Of V in groups along head_dim (hsb_axis), whose 2:4 pages are of rows.
using HeadDimKinds = KindList<DenseKind, Sparse24RowsKind>;
using AllHeadDimKinds = KindList<DenseKind, Sparse24RowsKind, WideKind>;
using QuantisedHeadDimKinds = KindList<Int4DenseKind, Int4RowsKind>;
using Int4HeadDimKinds = KindList<Int4DenseKind, Int4RowsKind, WideKind>;
template <class Type>
using HeadDimKindsOf = std::conditional_t<std::is_same_v<Type, Int4>, Int4HeadDimKinds,
                                          std::conditional_t<Type::is_narrow, AllHeadDimKinds, HeadDimKinds>>;

template <class Function, class Last>
[[gnu::always_inline]] inline decltype(auto) with_kind_of(KindList<Last>, hsb_block_kind, Function &function) {
    return function(Last{});
}
template <class Function, class First, class Second, class... Rest>
[[gnu::always_inline]] inline decltype(auto) with_kind_of(KindList<First, Second, Rest...>, hsb_block_kind kind,
                                                          Function &function) {
    if (kind == First::kind) return function(First{});
    return with_kind_of(KindList<Second, Rest...>{}, kind, function);
}

// Calls function(Kind{}) and returns what it returns. Always inline, as with_type() is.
template <class Kinds = BlockKinds, class Function>
[[gnu::always_inline]] inline decltype(auto) with_kind(hsb_block_kind kind, Function &&function) {
    return with_kind_of(Kinds{}, kind, function);
}

// Calls function(Kind{}) for each.
template <class Function, class... Kinds>
constexpr void for_each_kind_of(KindList<Kinds...>, Function &function) {
    (function(Kinds{}), ...);
}
template <class Function>
constexpr void for_each_kind(Function &&function) {
    for_each_kind_of(AllKinds{}, function);
}

// The largest of what function(Kind{}) gives.
template <class Function>
constexpr std::int64_t most_of_kinds(Function &&function) {
    std::int64_t most = 0;
    for_each_kind([&](auto kind) {
        const std::int64_t of_kind = function(kind);
        most = of_kind > most ? of_kind : most;
    });
    return most;
}

// The sum of what function(Kind{}) gives, of the kinds before one; kBlockKinds: of all.
template <class Function>
constexpr std::int64_t sum_of_kinds(int before, Function &&function) {
    std::int64_t sum = 0;
    for_each_kind([&](auto kind) { sum += kind.kind < before ? function(kind) : 0; });
    return sum;
}

}  // namespace hsb::cpu

// The kinds of blocks that the CPU stores, as types, and the way from an hsb_block_kind to one of them.
//
// A kind is a struct in kinds/<kind>/page.h: its pages and their pool, and what scratch decode needs for them. What else
// kernels do with a page of a kind are functions that take the kind first, in the file named after the kernel:
//
//   compress.h   pack_page<Isa, operand>(kind, block, page, head_dim); pack_chosen_page(kind, ...)
//   decode.h     score_page, weigh_page<Isa, Type, heads>(kind, ...); make_query_tables where query_floats() is not 0
//   prefill.h    unpacked_bytes, unpack_page, multiply_page(kind, ...)
//
// A new kind: these files, their name in an #include here, and its type in BlockKinds. What it lacks does not compile.
#pragma once

#include "block_map.h"
#include "cpu/kinds/dense.h"
#include "cpu/kinds/sparse_2_4.h"

namespace hsb::cpu {

template <class... Kinds>
struct KindList {
    static constexpr int size = sizeof...(Kinds);
};
using BlockKinds = KindList<DenseKind, Sparse24Kind>;
static_assert(BlockKinds::size == kBlockKinds, "every hsb_block_kind, once");

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
template <class Function>
[[gnu::always_inline]] inline decltype(auto) with_kind(hsb_block_kind kind, Function &&function) {
    return with_kind_of(BlockKinds{}, kind, function);
}

// Calls function(Kind{}) for each.
template <class Function, class... Kinds>
constexpr void for_each_kind_of(KindList<Kinds...>, Function &function) {
    (function(Kinds{}), ...);
}
template <class Function>
constexpr void for_each_kind(Function &&function) {
    for_each_kind_of(BlockKinds{}, function);
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

// What hsb_compress_params mean, checked; and from them to what kernels know at compile time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "aligned.h"
#include "block_map.h"
#include "compress_shape.h"
#include "cuda/dispatch.h"
#include "cuda/page.cuh"
#include "cuda/types.h"
#include "element.h"
#include "error.h"
#include "fit.cuh"
#include "head_blocks.cuh"
#include "loss.cuh"

namespace hsb::cuda {

// In blocks.
struct Plan {
    std::int64_t heads, blocks, eligible, sparse, wide;  // heads of all batches; blocks of one head
    bool is_fitted;                                      // whether anything is stored or chosen otherwise than x is

    explicit Plan(const hsb_compress_params &p)
        : heads(std::int64_t{p.batch} * p.kv_heads), blocks(ceil_div(p.seq, kBlock)),
          eligible(p.last_eligible - p.first_eligible), sparse(p.sparse_per_head),
          wide(p.stored == HSB_STORED_16 ? 0 : blocks - eligible),
          is_fitted(p.order != HSB_ORDER_ADJACENT || p.shift || p.weights || p.fold != 0.0f) {
        check_compress(p, kBlock);
        HSB_CHECK(is_aligned(p.shift, 16) && is_aligned(p.scale, 16), "shift and scale must be 16-byte aligned");
        HSB_CHECK(!p.map_blocks || (p.map_blocks >= blocks && p.dense_pages >= blocks - sparse - wide &&
                                    p.sparse_pages >= sparse && p.wide_pages >= wide),
                  "map and pools must have room for the blocks");
        const std::int64_t most = p.map_blocks > blocks ? p.map_blocks : blocks;
        HSB_CHECK(heads * most < kMostSlots, "more blocks than a map can name: cut the batch");
    }
    // With none or all to be chosen, there is nothing to compare.
    bool needs_losses() const { return 0 < sparse && sparse < eligible; }
    HeadBlocks of_head(const hsb_compress_params &p) const {
        const auto given = [&](std::int64_t needed, std::int32_t pages) {
            return static_cast<std::uint32_t>(p.map_blocks ? pages : needed);
        };
        return {static_cast<std::uint32_t>(blocks),
                static_cast<std::uint32_t>(p.first_eligible),
                static_cast<std::uint32_t>(p.last_eligible),
                static_cast<std::uint32_t>(sparse),
                static_cast<std::uint32_t>(wide),
                given(blocks, p.map_blocks),
                given(blocks - sparse - wide, p.dense_pages),
                given(sparse, p.sparse_pages),
                given(wide, p.wide_pages)};
    }
    std::int64_t key_bytes() const { return heads * eligible * 8; }
    std::int64_t workspace_bytes(int dtype) const {
        if (!needs_losses()) return 0;
        return with_element(dtype, [&](auto type) { return key_bytes() * (1 + kKeyLimbs<decltype(type)>); });
    }
};

// Calls run(head_dim, operand) with both as compile-time constants.
template <class Run>
void dispatch_shape(const hsb_compress_params &p, Run &&run) {
    const auto with_operand = [&](auto head_dim) {
        if (p.operand == HSB_KEY)
            run(head_dim, std::integral_constant<int, HSB_KEY>());
        else
            run(head_dim, std::integral_constant<int, HSB_VALUE>());
    };
    with_head_dim(p.head_dim, with_operand);
}

// Calls run(head_dim, operand) with both as compile-time constants: the operand whose groups p's are, which run along
// head_dim of V as they do of K.
template <class Run>
void dispatch_groups(const hsb_compress_params &p, Run &&run) {
    hsb_compress_params as = p;
    if (p.value_axis == HSB_AXIS_HEAD_DIM) as.operand = HSB_KEY;
    dispatch_shape(as, run);
}

// Calls run(Tag<Fitted<...>>()) for the order that K's channels have.
template <class T, int HeadDim, int Operand, bool Scaled = false, class Run>
void with_order(const hsb_compress_params &p, Run &&run) {
    if constexpr (Operand == HSB_KEY)
        if (p.order == HSB_ORDER_MIRROR) return run(Tag<Fitted<T, HeadDim, Operand, true, Scaled>>());
    run(Tag<Fitted<T, HeadDim, Operand, false, Scaled>>());
}

inline FitArgs fit_of(const hsb_compress_params &p) {
    return {p.shift, static_cast<const std::uint16_t *>(p.weights), p.fold / 2, p.scale};
}

// Packs all blocks (pack.cuh), as Stored (block_kinds.cuh) has it.
template <class Stored>
void pack(const hsb_compress_params &p, const Plan &plan);

}  // namespace hsb::cuda

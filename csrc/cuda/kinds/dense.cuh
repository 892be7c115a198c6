// Blocks that keep all of their values. block_kinds.cuh says what a kind consists of.
#pragma once

#include "dense_mma.cuh"
#include "dense_pack.cuh"
#include "dense_page.cuh"
#include "dense_wgmma.cuh"
#include "params.h"

namespace hsb::cuda {

struct DenseKind : DenseMma, DenseWgmma, DensePack {
    static constexpr hsb_block_kind kKind = HSB_DENSE;
    static constexpr bool kIsSparse = false;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return dense_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.dense; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.dense_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.dense; }
    static void *pool(const hsb_growing &g) { return g.dense; }
    static std::int32_t pages(const hsb_growing &g) { return g.dense_pages; }
};

}  // namespace hsb::cuda

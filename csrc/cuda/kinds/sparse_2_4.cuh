// Blocks that keep 2 of every 4 values. block_kinds.cuh says what a kind consists of.
#pragma once

#include "params.h"
#include "sparse_2_4_mma.cuh"
#include "sparse_2_4_pack.cuh"
#include "sparse_2_4_page.cuh"
#include "sparse_2_4_wgmma.cuh"

namespace hsb::cuda {

struct Sparse24Kind : Sparse24Mma, Sparse24Wgmma, Sparse24Pack {
    static constexpr hsb_block_kind kKind = HSB_SPARSE_2_4;
    static constexpr bool kIsSparse = true;
    static constexpr bool kStays = false;

    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return sparse_page_bytes(head_dim); }

    static const void *pool(const hsb_pages &pages) { return pages.sparse; }
    static std::int64_t pool_page_bytes(const hsb_pages &pages) { return pages.sparse_page_bytes; }
    static void *pool(const hsb_compress_params &p) { return p.sparse; }
    static void *pool(const hsb_growing &g) { return g.sparse; }
    static std::int32_t pages(const hsb_growing &g) { return g.sparse_pages; }
};

}  // namespace hsb::cuda

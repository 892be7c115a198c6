// Wide blocks of a cache of e4m3 as prefill's 8-bit products take them: dense pages of e4m3, in a pool of their own in the place
// of the wide one's (prefill/sm90/fp8/narrow.h).
#pragma once

#include "fp8_dense_wgmma.cuh"
#include "fp8_page.cuh"
#include "wide.cuh"

namespace hsb::cuda {

struct NarrowedKind : Fp8DenseWgmma {
    static constexpr hsb_block_kind kKind = WideKind::kKind;
    static constexpr bool kStays = false;
    HSB_HOST_DEVICE static constexpr int page_bytes(int head_dim) { return fp8_dense_page_bytes(head_dim); }
    static const void *pool(const hsb_pages &pages) { return pages.wide; }
};

}  // namespace hsb::cuda

// Wide blocks of a cache of e4m3, rounded to e4m3 for 8-bit products: into the caller's workspace, before prefill itself.
#pragma once

#include <cstdint>

#include "cuda/kinds/fp8_page.cuh"
#include "params.h"

namespace hsb::cuda::prefill {

// What the wide pages of one of K and V take.
inline std::int64_t narrowed_bytes(const hsb_pages &pages, int head_dim) {
    return pages.wide ? static_cast<std::int64_t>(pages.wide_pages) * fp8_dense_page_bytes(head_dim) : 0;
}

// Slot by slot, as dense pages.
void narrow_wide_pages(const hsb_pages &pages, hsb_operand operand, int head_dim, void *to, void *stream);

}  // namespace hsb::cuda::prefill

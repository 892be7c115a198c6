// K or V of the cache as kernels take it, and what every launcher checks of it.
#pragma once

#include <cstdint>

#include "cuda/page.cuh"
#include "error.h"
#include "params.h"

namespace hsb::cuda {

// hsb_pages on the device.
struct PagePool {
    const unsigned char *dense;
    const unsigned char *sparse;
    const std::int32_t *map;  // null: page i of the line is slot i of the one pool there is
};

inline PagePool pool_of(const hsb_pages &pages) {
    return {static_cast<const unsigned char *>(pages.dense), static_cast<const unsigned char *>(pages.sparse),
            pages.map};
}

inline void check_pages(const hsb_pages &pages, int head_dim) {
    HSB_CHECK(pages.map || !pages.dense != !pages.sparse, "only a cache of one kind of page needs no map");
    HSB_CHECK(!pages.dense || pages.dense_page_bytes == dense_page_bytes(head_dim),
              "dense_page_bytes is not this layout's");
    HSB_CHECK(!pages.sparse || pages.sparse_page_bytes == sparse_page_bytes(head_dim),
              "sparse_page_bytes is not this layout's");
    HSB_CHECK(pages.dense || pages.sparse, "no pages");
    for (const void *pool : {pages.dense, pages.sparse})
        HSB_CHECK(reinterpret_cast<std::uintptr_t>(pool) % 16 == 0, "pools must be 16-byte aligned");
}

// The largest page that a map can name: dense where there are dense pages.
inline int largest_page_bytes(const hsb_pages &pages, int head_dim) {
    return pages.dense ? dense_page_bytes(head_dim) : sparse_page_bytes(head_dim);
}

// What decode and prefill ask of a shape; P is either's params.
template <class P>
void check_attention_shape(const P &p) {
    HSB_CHECK(p.batch > 0 && p.kv_heads > 0 && p.q_heads > 0 && p.seq > 0, "sizes must be positive");
    HSB_CHECK(p.q_heads % p.kv_heads == 0 && p.q_heads / p.kv_heads <= 16,
              "q_heads must be 1 to 16 times kv_heads, and a multiple");
    HSB_CHECK(p.head_dim == 64 || p.head_dim == 128, "head_dim must be 64 or 128");
    HSB_CHECK(p.dtype == HSB_FP16 || p.dtype == HSB_BF16, "dtype must be fp16 or bf16");
    HSB_CHECK(ceil_div(p.seq, kBlock) * p.batch * p.kv_heads < (1 << 30), "more than 2^30 blocks: cut the batch");
}

}  // namespace hsb::cuda

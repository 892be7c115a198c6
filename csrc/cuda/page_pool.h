// K or V of the cache as kernels take it, and what every launcher checks and hands over of it.
#pragma once

#include <cstdint>

#include "attention_shape.h"
#include "cuda/page.cuh"

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

// What decode and prefill over pages ask of a shape; P is either's params.
template <class P>
void check_paged_shape(const P &p) {
    check_attention_shape(p);
    HSB_CHECK(ceil_div(p.seq, kBlock) * p.batch * p.kv_heads < (1 << 30), "more than 2^30 blocks: cut the batch");
}

// What the arguments of the kernels over pages have alike.
template <class Arguments, class P>
void set_tensors(Arguments &a, const P &p) {
    a.q = p.q;
    a.out = p.out;
    a.lse = p.lse;
    a.k = pool_of(p.k);
    a.v = pool_of(p.v);
    a.group = p.q_heads / p.kv_heads;
}

}  // namespace hsb::cuda

// K or V of the cache as kernels take it, and what every launcher checks and hands over of it.
#pragma once

#include <cstdint>

#include "attention_shape.h"
#include "block_map.h"
#include "cuda/page.cuh"

namespace hsb::cuda {

// A page where it lies in its pool.
template <class Byte>
struct StoredPage {
    Byte *at;
    int bytes;
};

// The pools of each kind of page, to read or to write.
template <class Byte>
struct Pools {
    Byte *dense;
    Byte *sparse;

    template <int HeadDim>
    __device__ __forceinline__ StoredPage<Byte> page(std::int32_t entry) const {
        switch (kind_of(entry)) {
        case HSB_SPARSE_2_4: return {sparse + slot_of(entry) * sparse_page_bytes(HeadDim), sparse_page_bytes(HeadDim)};
        case HSB_DENSE: break;
        }
        return {dense + slot_of(entry) * dense_page_bytes(HeadDim), dense_page_bytes(HeadDim)};
    }
};

// hsb_pages on the device.
struct PagePool : Pools<const unsigned char> {
    const std::int32_t *map;  // null: page i of the line is slot i of the one pool there is

    HSB_HOST_DEVICE bool has_one_kind() const { return !(dense && sparse); }
    HSB_HOST_DEVICE hsb_block_kind one_kind() const { return dense ? HSB_DENSE : HSB_SPARSE_2_4; }

    // The map's entry of a page: of all pages of all (batch, kv head), which stand in one line.
    __device__ __forceinline__ std::int32_t entry(std::int32_t page) const {
        return map ? __ldg(map + page) : entry_of(one_kind(), page);
    }
};

inline PagePool pool_of(const hsb_pages &pages) {
    return {{static_cast<const unsigned char *>(pages.dense), static_cast<const unsigned char *>(pages.sparse)},
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
    HSB_CHECK(ceil_div(p.seq, kBlock) * p.batch * p.kv_heads < kMostSlots,
              "more blocks than a map can name: cut the batch");
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

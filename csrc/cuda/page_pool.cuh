// K or V of the cache as kernels take it, and what every launcher checks and hands over of it.
#pragma once

#include <cstdint>

#include "aligned.h"
#include "attention_shape.h"
#include "block_map.h"
#include "cuda/block_kinds.cuh"
#include "cuda/page.cuh"

namespace hsb::cuda {

// A page where it lies in its pool.
template <class Byte>
struct StoredPage {
    Byte *at;
    int bytes;
};

// Where the pages of each kind lie, to read or to write; null where there are none. A member of arguments themselves, or of
// PagePool: one struct more around it, and ptxas spills (prefill sm80, bf16).
template <class Byte>
using Pools = Byte *[kBlockKinds];

template <int HeadDim, class Kinds = BlockKinds, class Byte>
__device__ __forceinline__ StoredPage<Byte> page_in(Byte *const (&pools)[kBlockKinds], std::int32_t entry) {
    return with_kind<Kinds>(kind_of(entry), [&](auto kind) -> StoredPage<Byte> {
        constexpr int kBytes = kind.page_bytes(HeadDim);
        return {pools[kind.kKind] + slot_of(entry) * kBytes, kBytes};
    });
}

// hsb_pages on the device.
struct PagePool {
    Pools<const unsigned char> pools;
    const std::int32_t *map;  // null: page i of the line is slot i of the one pool there is

    template <int HeadDim, class Kinds = BlockKinds>
    __device__ __forceinline__ StoredPage<const unsigned char> page(std::int32_t entry) const {
        return page_in<HeadDim, Kinds>(pools, entry);
    }

    // Recursions, not loops: a loop in here keeps the compiler from unrolling those around.
    template <class Kinds = BlockKinds, int From = 0>
    HSB_HOST_DEVICE bool has_one_kind() const {
        if constexpr (From + 1 == Kinds::kCount)
            return true;
        else
            return !(pools[From] && has_any<Kinds, From + 1>()) && has_one_kind<Kinds, From + 1>();
    }
    template <class Kinds = BlockKinds, int From = 0>
    HSB_HOST_DEVICE hsb_block_kind one_kind() const {
        if constexpr (From + 1 == Kinds::kCount)
            return KindAt<From, Kinds>::kKind;
        else
            return pools[From] ? KindAt<From, Kinds>::kKind : one_kind<Kinds, From + 1>();
    }

    // The map's entry of a page: of all pages of all (batch, kv head), which stand in one line.
    template <class Kinds = BlockKinds>
    __device__ __forceinline__ std::int32_t entry(std::int32_t page) const {
        return map ? __ldg(map + page) : entry_of(one_kind<Kinds>(), page);
    }

private:
    template <class Kinds, int From>
    HSB_HOST_DEVICE bool has_any() const {
        if constexpr (From + 1 == Kinds::kCount)
            return pools[From];
        else
            return pools[From] || has_any<Kinds, From + 1>();
    }
};

// Of a struct of params.h: hsb_pages to read, or hsb_compress_params to write.
template <class Kinds = BlockKinds, class Byte, class P>
void set_pools(Byte *(&pools)[kBlockKinds], const P &p) {
    for_each_kind([&](auto kind) { pools[kind.kKind] = static_cast<Byte *>(kind.pool(p)); }, Kinds());
}

// Calls run(Stored()) for an hsb_stored, which may be any number.
template <class Run>
void with_stored(std::int32_t stored, Run &&run) {
    switch (stored) {
    case HSB_STORED_16: return run(Stored16());
    case HSB_STORED_FP8: return run(StoredFp8());
    case HSB_STORED_INT4: return run(StoredInt4());
    default: HSB_CHECK(false, "stored is not an hsb_stored");
    }
}

inline PagePool pool_of(const hsb_pages &pages) {
    PagePool pool{{}, pages.map};
    with_stored(pages.stored, [&](auto stored) { set_pools<typename decltype(stored)::Kinds>(pool.pools, pages); });
    return pool;
}

// That these are pages stored as Stored says.
template <class Stored = Stored16>
void check_pages(const hsb_pages &pages, int head_dim) {
    HSB_CHECK(pages.stored == Stored::kStored, "this kernel takes no pages whose elements are stored so");
    HSB_CHECK(!Stored::kHasScale || pages.scale, "these elements need a scale");
    HSB_CHECK(is_aligned(pages.scale, 16), "scale must be 16-byte aligned");
    int pools = 0;
    const auto check = [&](auto kind) {
        if (!kind.pool(pages)) return;
        ++pools;
        HSB_CHECK(kind.pool_page_bytes(pages) == kind.page_bytes(head_dim),
                  "a pool's page bytes are not this layout's");
        HSB_CHECK(is_aligned(kind.pool(pages), 16), "pools must be 16-byte aligned");
    };
    for_each_kind(check, typename Stored::Kinds());
    HSB_CHECK(pages.map || pools == 1, "only a cache of one kind of page needs no map");
    HSB_CHECK(pools > 0, "no pages");
}

// The largest page that is copied of those that a map can name; where all stay, what any kernel has room for.
template <class Stored = Stored16>
int largest_page_bytes(const hsb_pages &pages, int head_dim) {
    int largest = smallest_page_bytes(head_dim, typename Stored::Kinds());
    const auto look = [&](auto kind) {
        constexpr auto bytes_of = copied_bytes<decltype(kind)>;
        if (kind.pool(pages) && bytes_of(head_dim) > largest) largest = bytes_of(head_dim);
    };
    for_each_kind(look, typename Stored::Kinds());
    return largest;
}

// What decode and prefill over pages ask of a shape; P is either's params.
template <class P>
void check_paged_shape(const P &p) {
    check_attention_shape(p);
    HSB_CHECK(ceil_div(p.seq, kBlock) * p.batch * p.kv_heads < kMostSlots,
              "more blocks than a map can name: cut the batch");
}

// What a pruner did to K and V before they were stored, which kernels take back: on either's params.
template <class P>
void check_order_and_shifts(const P &p) {
    HSB_CHECK(p.key_order == HSB_ORDER_ADJACENT || p.key_order == HSB_ORDER_MIRROR, "key_order is not an hsb_order");
    HSB_CHECK(p.key_order == HSB_ORDER_ADJACENT || is_aligned(p.q, 16), "q must be 16-byte aligned");
    HSB_CHECK(is_aligned(p.key_shift, 16) && is_aligned(p.value_shift, 16), "shifts must be 16-byte aligned");
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
    a.mirror = p.key_order == HSB_ORDER_MIRROR;
    a.key_shift = p.key_shift;
    a.value_shift = p.value_shift;
    a.given_scale = p.scale;
}

}  // namespace hsb::cuda

// Pages where they lie in their pools.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "block_map.h"
#include "cpu/block_kinds.h"
#include "error.h"

namespace hsb::cpu {

struct StoredPage {
    const std::byte *data;
    std::int64_t bytes;
    hsb_block_kind kind;
};

inline StoredPage stored_page(const hsb_pages &pages, std::int32_t entry) {
    const hsb_block_kind kind = kind_of(entry);
    const Pool pool = with_kind<AllKinds>(kind, [&](auto of_kind) { return of_kind.pool(pages); });
    return {pool.pages + slot_of(entry) * pool.page_bytes, pool.page_bytes, kind};
}

// Bytes of a value of the pages that an hsb_stored has been checked to stand for; wide pages apart.
constexpr std::int64_t value_bytes(int stored) { return stored == HSB_STORED_FP8 ? 1 : 2; }

// Calls function(KindList<...>{}) of the kinds that pages have, wide ones among them, and returns what it returns.
template <class Function>
decltype(auto) with_kinds(int stored, int value_axis, Function &&function) {
    const bool is_int4 = stored == HSB_STORED_INT4;
    if (value_axis == HSB_AXIS_HEAD_DIM) return is_int4 ? function(Int4HeadDimKinds{}) : function(AllHeadDimKinds{});
    return is_int4 ? function(Int4Kinds{}) : function(AllKinds{});
}

// Where the page of an entry is to be written.
inline std::byte *page_to_pack(const hsb_compress_params &p, std::int32_t entry) {
    const auto page_of = [&](auto of_kind) {
        return of_kind.pool(p) + slot_of(entry) * of_kind.page_bytes(p.head_dim, value_bytes(p.stored));
    };
    return with_kinds(p.stored, p.value_axis,
                      [&](auto kinds) { return with_kind<decltype(kinds)>(kind_of(entry), page_of); });
}

// Throws Error unless these are pages of this layout.
inline void check_pages(const hsb_pages &pages, int head_dim) {
    HSB_CHECK(pages.map, "the block map is required");
    HSB_CHECK(pages.stored >= HSB_STORED_16 && pages.stored <= HSB_STORED_INT4, "stored is no hsb_stored");
    const std::int64_t bytes = value_bytes(pages.stored);
    HSB_CHECK(pages.stored == HSB_STORED_16 || pages.scale, "these elements need a scale");
    HSB_CHECK(pages.value_axis == HSB_AXIS_TOKENS || pages.value_axis == HSB_AXIS_HEAD_DIM,
              "value_axis is no hsb_axis");
    bool any = false;
    const auto check = [&](auto kind) {
        const Pool pool = kind.pool(pages);
        HSB_CHECK(!pool.pages || pool.page_bytes == kind.page_bytes(head_dim, bytes),
                  kind.pool_name + std::string("_page_bytes is not this layout's"));
        any |= pool.pages != nullptr;
    };
    with_kinds(pages.stored, pages.value_axis, [&](auto kinds) { for_each_kind_of(kinds, check); });
    HSB_CHECK(any, "no pages");
}
inline void check_pages(const hsb_pages &k, const hsb_pages &v, int head_dim) {
    HSB_CHECK(k.value_axis == HSB_AXIS_TOKENS, "K has no value_axis");
    check_pages(k, head_dim);
    check_pages(v, head_dim);
}

}  // namespace hsb::cpu

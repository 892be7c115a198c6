// Pages where they lie in their pools.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_map.h"

namespace hsb::cpu {

struct StoredPage {
    const std::byte *data;
    std::int64_t bytes;
    hsb_block_kind kind;
};

inline StoredPage stored_page(const hsb_pages &pages, std::int32_t entry) {
    const hsb_block_kind kind = kind_of(entry);
    const auto within = [&](const void *pool, std::int64_t page_bytes) {
        return StoredPage{static_cast<const std::byte *>(pool) + slot_of(entry) * page_bytes, page_bytes, kind};
    };
    switch (kind) {
    case HSB_SPARSE_2_4: return within(pages.sparse, pages.sparse_page_bytes);
    case HSB_DENSE: break;
    }
    return within(pages.dense, pages.dense_page_bytes);
}

}  // namespace hsb::cpu

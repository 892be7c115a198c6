// A wide block's page: a dense one's (../dense/page.h) of 16-bit values, whatever the other pages' are.
#pragma once

#include "../dense/page.h"

namespace hsb::cpu {

struct WideKind {
    static constexpr hsb_block_kind kind = HSB_WIDE;
    static constexpr const char *pool_name = "wide";  // as params.h has it
    static constexpr bool prunes = false;

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return DenseKind::page_bytes(head_dim, 2);
    }

    static Pool pool(const hsb_pages &p) { return {static_cast<const std::byte *>(p.wide), p.wide_page_bytes}; }
    static std::byte *pool(const hsb_compress_params &p) { return static_cast<std::byte *>(p.wide); }

    // Decode reads x as it is.
    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};

}  // namespace hsb::cpu

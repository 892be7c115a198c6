// Pages of int4: scales, then tiles as of other pages (cpu/page.h, ../dense/page.h, ../sparse_2_4/page.h), whose values
// are nibbles, 16 bytes for 32 lanes:
//
//   byte    0  fp16 scale[head_dim / 64][64]    of the 64 steps of a tile: K's of the channels, which both tiles of 32
//                                               tokens share; V's of the tokens, for 64 channels, two tiles
//   then       tiles of u8[64 steps][16], or of 192 bytes of patterns and u8[16 groups][2 slots][16]
//
// Byte i of 16 holds lane i in its low half and lane 16 + i in its high one. A nibble s mmm is (m + 1/2) * scale, negative
// where s is set. So scales go with x, not with values; and as bytes s 000 mmm1 nibbles are e4m3, times 2^-8 of what they
// stand for: from 1 to 15, subnormal numbers and the first normal ones are counted in one.
#pragma once

#include "../dense/page.h"
#include "../sparse_2_4/page.h"

namespace hsb::cpu {

constexpr std::int64_t int4_scale_bytes(int head_dim) { return head_dim * 2; }
constexpr float kInt4Unit = 256.0f;  // what a byte of e4m3 that a nibble became counts
constexpr int kNibbleLanes = kTileLanes / 2;

struct Int4DenseKind {
    static constexpr hsb_block_kind kind = HSB_DENSE;
    static constexpr const char *pool_name = DenseKind::pool_name;
    static constexpr std::int64_t tile_bytes = kTileSteps * kNibbleLanes;

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return int4_scale_bytes(head_dim) + tiles_per_page(head_dim) * tile_bytes;
    }

    static Pool pool(const hsb_pages &p) { return DenseKind::pool(p); }

    // Decode makes its x of each page anew.
    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};

struct Int4Sparse24Kind {
    static constexpr hsb_block_kind kind = HSB_SPARSE_2_4;
    static constexpr const char *pool_name = Sparse24Kind::pool_name;
    static constexpr std::int64_t tile_bytes = kPatternBytes + kTileGroups * 2 * kNibbleLanes;

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return int4_scale_bytes(head_dim) + tiles_per_page(head_dim) * tile_bytes;
    }

    static Pool pool(const hsb_pages &p) { return Sparse24Kind::pool(p); }

    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};
static_assert(Int4DenseKind::page_bytes(128) == 4352 && Int4Sparse24Kind::page_bytes(128) == 3072, "3.8x and 5.3x");

}  // namespace hsb::cpu

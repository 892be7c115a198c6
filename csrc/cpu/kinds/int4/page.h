// Pages of int4: scales, then tiles as of other pages (cpu/page.h, ../dense/page.h, ../sparse_2_4/page.h), whose values
// are digits of 4 bits:
//
//   byte    0  fp16 scale[head_dim / 64][64]    of the 64 steps of a tile: K's of the channels, which both tiles of 32
//                                               tokens share; V's of the tokens, for 64 channels, two tiles
//   then       tiles of u32[8 eighths][32 lanes], or of 192 bytes of patterns and u32[4 quarters][32 lanes]
//
// A digit, in two's complement, stands for a level of 2 digit + 1, from -15 to 15, in halves of a scale. A word has eight of a
// lane, for products of pairs of 16 bits: bits 16 h + 4 j hold step 8 e + 2 j + h of a dense tile's eighth e, or what slot h
// keeps of group 4 q + j in a 2:4 tile's quarter q.
#pragma once

#include "../dense/page.h"
#include "../sparse_2_4/page.h"

namespace hsb::cpu {

constexpr std::int64_t int4_scale_bytes(int head_dim) { return head_dim * 2; }
constexpr int kHalfDigits = 4;  // of a word, in each of its halves
constexpr int kWordDigits = 2 * kHalfDigits;

struct Int4DenseKind {
    using Stored = DenseKind;  // that it is made of
    static constexpr hsb_block_kind kind = HSB_DENSE;
    static constexpr const char *pool_name = DenseKind::pool_name;
    static constexpr bool prunes = DenseKind::prunes;
    static constexpr std::int64_t values_at = 0;
    static constexpr std::int64_t tile_bytes = kTileSteps / kWordDigits * kTileLanes * 4;

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return int4_scale_bytes(head_dim) + tiles_per_page(head_dim) * tile_bytes;
    }

    static Pool pool(const hsb_pages &p) { return DenseKind::pool(p); }
    static std::byte *pool(const hsb_compress_params &p) { return DenseKind::pool(p); }

    // Decode makes its x of each page anew.
    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};

struct Int4Sparse24Kind {
    using Stored = Sparse24Kind;
    static constexpr hsb_block_kind kind = HSB_SPARSE_2_4;
    static constexpr const char *pool_name = Sparse24Kind::pool_name;
    static constexpr bool prunes = Sparse24Kind::prunes;
    static constexpr std::int64_t values_at = kPatternBytes;
    static constexpr std::int64_t tile_bytes = kPatternBytes + kTileGroups / kHalfDigits * kTileLanes * 4;

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return int4_scale_bytes(head_dim) + tiles_per_page(head_dim) * tile_bytes;
    }

    static Pool pool(const hsb_pages &p) { return Sparse24Kind::pool(p); }
    static std::byte *pool(const hsb_compress_params &p) { return Sparse24Kind::pool(p); }

    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};
static_assert(Int4DenseKind::page_bytes(128) == 4352 && Int4Sparse24Kind::page_bytes(128) == 3072, "3.8x and 5.3x");

}  // namespace hsb::cpu

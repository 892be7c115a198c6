// A 2:4 block of V in groups along head_dim (hsb_axis): a page is a row of tiles of 32 head dims x 64 tokens, for decode walks
// V token by token, its lanes being head dims. Of a tile, 2304 bytes:
//
//   byte    0  u32 mask[64 tokens]             bit l: whether lane l is kept; 2 of each 4 are
//   byte  256  u16 value[64 tokens][16]        in ascending order; or u8: then a tile has 1280 bytes
//
// Two bits more a group than the patterns of ../sparse_2_4/page.h, so that what spreads a row's values out is a word as it is.
#pragma once

#include "../sparse_2_4/page.h"

namespace hsb::cpu {

struct Sparse24RowsKind {
    static constexpr hsb_block_kind kind = HSB_SPARSE_2_4;
    static constexpr const char *pool_name = Sparse24Kind::pool_name;
    static constexpr bool prunes = true;
    static constexpr int kept = kTileLanes / 2;  // of a row
    static constexpr std::int64_t values_at = kTileSteps * 4;
    static constexpr std::int64_t tile_bytes = values_at + kTileSteps * kept * 2;

    static constexpr std::int64_t tile_bytes_of(std::int64_t value_bytes) {
        return values_at + kTileSteps * kept * value_bytes;  // of 2 bytes: tile_bytes
    }
    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t value_bytes = 2) {
        return tiles_per_page(head_dim) * tile_bytes_of(value_bytes);
    }

    static Pool pool(const hsb_pages &p) { return Sparse24Kind::pool(p); }
    static std::byte *pool(const hsb_compress_params &p) { return Sparse24Kind::pool(p); }

    // Decode reads x as it is.
    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};
static_assert(Sparse24RowsKind::page_bytes(128) == 9216 && Sparse24RowsKind::page_bytes(128, 1) == 5120,
              "9/16 and 5/16 of a dense page of 16 bits");

}  // namespace hsb::cpu

// A 2:4 block of int4 of V in groups along head_dim (hsb_axis): scales as of other pages of int4 (../int4/page.h), then rows of
// 64 head dims x 64 tokens, in eighths of 8 tokens of 192 bytes each:
//
//   byte    0  u32 mask[16 lanes]          a lane is a group of 4 head dims; bit 16 h + 4 j + i: whether token 2 j + h of
//                                          the eighth keeps dim i
//   byte   64  u32 value[2 slots][16]      digits, as of ../int4/page.h: of that token, at bits 16 h + 4 j, what the slot
//                                          keeps, the lower of the two head dims first
//
// Lane 4 b + k is group 4 k + b, so that sums of the four dims, each a vector of lanes, are successive head dims once they are
// transposed four by four, which no lane has to cross a part of 128 bits for.
#pragma once

#include "../int4/page.h"
#include "../sparse_2_4_rows/page.h"

namespace hsb::cpu {

struct Int4RowsKind {
    using Stored = Sparse24RowsKind;  // that it is made of
    static constexpr hsb_block_kind kind = HSB_SPARSE_2_4;
    static constexpr const char *pool_name = Sparse24Kind::pool_name;
    static constexpr bool prunes = true;
    static constexpr int dims = kTileSteps;  // of a row, whose tokens have a scale each
    static constexpr int lanes = dims / 4;   // groups
    static constexpr int words = 3 * lanes;  // of an eighth: masks, then values
    static constexpr int eighths = kBlock / kWordDigits;
    static constexpr std::int64_t row_bytes = eighths * words * 4;

    static constexpr int group_of(int lane) { return lane % 4 * 4 + lane / 4; }  // and the other way

    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t /*value_bytes*/ = 2) {
        return int4_scale_bytes(head_dim) + head_dim / dims * row_bytes;
    }

    static Pool pool(const hsb_pages &p) { return Sparse24Kind::pool(p); }
    static std::byte *pool(const hsb_compress_params &p) { return Sparse24Kind::pool(p); }

    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};
static_assert(Int4RowsKind::page_bytes(128) == 3328, "4.9x");

}  // namespace hsb::cpu

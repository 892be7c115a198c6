// A 2:4 block's tile (cpu/page.h), 2240 bytes: a group is 4 successive c, of which each lane keeps 2. Its pattern, one of
// 6, is a 3-bit code (kPattern below): 16 groups need 48 bits a lane, a fourth less than two 2-bit indices per group.
//
//   byte    0  u32 low[32]     lane l: codes of groups 0..9 at bits 3g; bits 30..31 = bits 0..1 of group 15's code
//   byte  128  u32 high[16]    half word h = lane / 16 of high[lane % 16]: codes of groups 10..14 at bits 3 (g - 10);
//                              bit 15 = bit 2 of group 15's code
//   byte  192  u16 value[16 groups][2 slots][32 lanes]           or u8: then a tile has 1216 bytes
//
// Patterns stand before the values they steer, in one sequential stream; that beats separate arrays.
#pragma once

#include "cpu/page.h"
#include "params.h"

namespace hsb::cpu {

constexpr int kTileGroups = kTileSteps / 4;

// Kept positions of each pattern code, in lexicographic order; slot 0 is the lower position.
constexpr int kPatterns = 6;
constexpr std::uint8_t kPattern[kPatterns][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

constexpr std::size_t kPatternBytes = 192;
constexpr std::size_t kHighPatterns = 128;  // byte offset of high[]

constexpr int kTable = 16;  // floats of decode's table of one group: [8 * slot + pattern]

struct Sparse24Kind {
    static constexpr hsb_block_kind kind = HSB_SPARSE_2_4;
    static constexpr const char *pool_name = "sparse";  // as params.h has it
    static constexpr bool prunes = true;
    static constexpr std::int64_t tile_bytes = kPatternBytes + kTileGroups * 2 * kTileLanes * 2;
    static constexpr std::int64_t values_at = kPatternBytes;  // in a tile, whatever its values
    static_assert(tile_bytes == 2240, "16 groups x 2 slots x 32 lanes of 16 bits, and 48 bits of pattern a lane");

    static constexpr std::int64_t tile_bytes_of(std::int64_t value_bytes) {
        return kPatternBytes + kTileGroups * 2 * kTileLanes * value_bytes;
    }
    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t value_bytes = 2) {
        return tiles_per_page(head_dim) * tile_bytes_of(value_bytes);
    }

    static Pool pool(const hsb_pages &p) { return {static_cast<const std::byte *>(p.sparse), p.sparse_page_bytes}; }
    static std::byte *pool(const hsb_compress_params &p) { return static_cast<std::byte *>(p.sparse); }

    // Decode permutes x into tables: of a query head once a unit, of a head's probabilities once a block.
    static constexpr std::int64_t query_floats(int head_dim) { return head_dim / 4 * kTable; }
    static constexpr std::int64_t weight_floats() { return kTileGroups * kTable; }
};
static_assert(Sparse24Kind::tile_bytes_of(2) == Sparse24Kind::tile_bytes, "values of 16 bits");

}  // namespace hsb::cpu

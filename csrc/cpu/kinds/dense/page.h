// A dense block's tile (cpu/page.h), 4096 bytes: for each c, 32 lanes of 16-bit values; 2048 bytes of values of 8 bits.
#pragma once

#include "cpu/page.h"
#include "params.h"

namespace hsb::cpu {

struct DenseKind {
    static constexpr hsb_block_kind kind = HSB_DENSE;
    static constexpr const char *pool_name = "dense";  // as params.h has it
    static constexpr bool prunes = false;
    static constexpr std::int64_t tile_bytes = kTileSteps * kTileLanes * 2;

    static constexpr std::int64_t values_at = 0;  // in a tile, whatever its values

    static constexpr std::int64_t tile_bytes_of(std::int64_t value_bytes) { return tile_bytes / 2 * value_bytes; }
    static constexpr std::int64_t page_bytes(int head_dim, std::int64_t value_bytes = 2) {
        return tiles_per_page(head_dim) * tile_bytes_of(value_bytes);
    }

    static Pool pool(const hsb_pages &p) { return {static_cast<const std::byte *>(p.dense), p.dense_page_bytes}; }
    static std::byte *pool(const hsb_compress_params &p) { return static_cast<std::byte *>(p.dense); }

    // Decode reads x as it is.
    static constexpr std::int64_t query_floats(int) { return 0; }
    static constexpr std::int64_t weight_floats() { return 0; }
};

}  // namespace hsb::cpu

// What the blocks of a head become, and their entries in the map.
#pragma once

#include <cstdint>

#include "block_map.h"
#include "host_device.h"
#include "params.h"

namespace hsb::cuda {

struct HeadBlocks {
    std::uint32_t count;
    std::uint32_t first, last;  // eligible: first .. last - 1
    std::uint32_t sparse;       // how many of these become 2:4
    std::uint32_t wide;         // how many stay wide: all others than the eligible, or none
    std::uint32_t entries;  // of the map, and pages of each pool, that the head has: as many, or more of a cache that
    std::uint32_t dense_pages, sparse_pages, wide_pages;  // grows

    HSB_HOST_DEVICE bool is_eligible(std::uint32_t block) const { return block >= first && block < last; }

    // Entry of a block, which becomes 2:4 or not, after `sparse_before` that do. Pages of all heads stand in one line.
    HSB_HOST_DEVICE std::int32_t entry(std::uint32_t head, std::uint32_t block, bool is_sparse,
                                       std::uint32_t sparse_before) const {
        const auto slot = [&](std::uint32_t of_head, std::uint32_t before) {
            return static_cast<std::int32_t>(head * of_head + before);
        };
        if (is_sparse) return entry_of(HSB_SPARSE_2_4, slot(sparse_pages, sparse_before));
        std::uint32_t wide_before = 0;
        if (wide > 0) {
            wide_before = (block < first ? block : first) + (block > last ? block - last : 0);
            if (!is_eligible(block)) return entry_of(HSB_WIDE, slot(wide_pages, wide_before));
        }
        return entry_of(HSB_DENSE, slot(dense_pages, block - sparse_before - wide_before));
    }

    // The same where all eligible blocks become 2:4, or none: then there is nothing to choose.
    HSB_HOST_DEVICE std::int32_t entry(std::uint32_t head, std::uint32_t block) const {
        if (sparse == 0) return entry(head, block, false, 0);
        const std::uint32_t before = block < first ? 0 : block < last ? block - first : sparse;
        return entry(head, block, is_eligible(block), before);
    }
};

}  // namespace hsb::cuda

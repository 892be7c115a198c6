// Entries of a block map (hsb_pages::map), for both libraries: which kind of page a block is, and where among the pages
// of that kind.
//
// A new kind of block: its name in params.h, kBlockKinds here, and a case wherever a compiler then misses one (-Wswitch):
// what its pages are (page.h, page.cuh), where they lie (page_pool.h, page_pool.cuh), and each kernel's products.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace hsb {

constexpr int kBlockKinds = 2;
constexpr int kUsedKindBits = 1;  // that tell them apart: what kernels keep of a kind
static_assert(1 << (kUsedKindBits - 1) < kBlockKinds && kBlockKinds <= 1 << kUsedKindBits,
              "no more bits than it takes");
static_assert(kUsedKindBits <= HSB_KIND_BITS, "a map entry has no room for so many kinds");

constexpr std::int64_t kMostSlots = std::int64_t{1} << (31 - HSB_KIND_BITS);  // of a kind, so that entries are positive

HSB_HOST_DEVICE constexpr hsb_block_kind kind_of(std::int32_t entry) {
    return static_cast<hsb_block_kind>(entry & ((1 << HSB_KIND_BITS) - 1));
}
HSB_HOST_DEVICE constexpr std::int64_t slot_of(std::int32_t entry) { return entry >> HSB_KIND_BITS; }

HSB_HOST_DEVICE constexpr std::int32_t entry_of(hsb_block_kind kind, std::int32_t slot) {
    return slot * (1 << HSB_KIND_BITS) + static_cast<std::int32_t>(kind);
}
static_assert(kind_of(entry_of(HSB_SPARSE_2_4, 5)) == HSB_SPARSE_2_4 && slot_of(entry_of(HSB_SPARSE_2_4, 5)) == 5);
static_assert(slot_of(entry_of(HSB_DENSE, kMostSlots - 1)) == kMostSlots - 1, "the highest slot comes back");

}  // namespace hsb

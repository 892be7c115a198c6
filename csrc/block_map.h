// Entries of a block map (hsb_pages::map), for both libraries: which kind of page a block is, and where among the pages
// of that kind.
//
// A new kind of block: its name in params.h, a type of its own on each device (cpu/kinds/, cuda/kinds/), and a line in
// that device's list of kinds.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace hsb {

constexpr int kBlockKinds = HSB_BLOCK_KINDS;

// The bits that tell `kinds` apart.
constexpr int kind_bits(int kinds) {
    int bits = 1;
    while (1 << bits < kinds) ++bits;
    return bits;
}
static_assert(kind_bits(kBlockKinds) <= HSB_KIND_BITS, "a map entry has no room for so many kinds");

constexpr std::int64_t kMostSlots = std::int64_t{1} << (31 - HSB_KIND_BITS);  // of a kind, so that entries are positive

HSB_HOST_DEVICE constexpr hsb_block_kind kind_of(std::int32_t entry) {
    return static_cast<hsb_block_kind>(entry & ((1 << HSB_KIND_BITS) - 1));
}
HSB_HOST_DEVICE constexpr std::int64_t slot_of(std::int32_t entry) { return entry >> HSB_KIND_BITS; }

HSB_HOST_DEVICE constexpr std::int32_t entry_of(hsb_block_kind kind, std::int32_t slot) {
    return slot * (1 << HSB_KIND_BITS) + static_cast<std::int32_t>(kind);
}
// What a block is that is kept from pruning, or may still grow, among elements of an hsb_stored; and one that may be pruned.
HSB_HOST_DEVICE constexpr hsb_block_kind open_kind(std::int32_t stored) {
    return stored == HSB_STORED_16 ? HSB_DENSE : HSB_WIDE;
}
HSB_HOST_DEVICE constexpr hsb_block_kind judged_kind(bool is_sparse) { return is_sparse ? HSB_SPARSE_2_4 : HSB_DENSE; }

constexpr auto kLastKind = static_cast<hsb_block_kind>(kBlockKinds - 1);
static_assert(kind_of(entry_of(kLastKind, 5)) == kLastKind && slot_of(entry_of(kLastKind, 5)) == 5);
static_assert(slot_of(entry_of(kLastKind, kMostSlots - 1)) == kMostSlots - 1, "the highest slot comes back");

}  // namespace hsb

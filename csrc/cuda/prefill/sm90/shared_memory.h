// What a block of threads keeps in shared memory, for the kernel and for the launcher.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/shared_limit.h"
#include "plan.h"

namespace hsb::cuda::prefill::sm90 {

// What producer and consumers meet by, at the start of a block's shared memory. Kernels address it by numbers, not
// pointers: x_at(base, ..) has it at `base`.
struct RingBarriers {
    static constexpr int kMaxStages = RingShape::kMaxStages;

    std::uint64_t key_full[kMaxStages], key_empty[kMaxStages];  // mbarriers
    std::uint64_t value_full[kMaxStages], value_empty[kMaxStages];
    std::uint64_t taken_full;  // mbarrier
};
struct BarrierAddresses {
    HSB_HOST_DEVICE static constexpr std::uint32_t key_full_at(std::uint32_t base, int stage) {
        return base + offsetof(RingBarriers, key_full) + stage * 8;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t key_empty_at(std::uint32_t base, int stage) {
        return base + offsetof(RingBarriers, key_empty) + stage * 8;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t value_full_at(std::uint32_t base, int stage) {
        return base + offsetof(RingBarriers, value_full) + stage * 8;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t value_empty_at(std::uint32_t base, int stage) {
        return base + offsetof(RingBarriers, value_empty) + stage * 8;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t taken_full_at(std::uint32_t base) {
        return base + offsetof(RingBarriers, taken_full);
    }
};

// Tiles are panels of a group's rows (queries) of 128 bytes, swizzled as page.cuh draws it. After the struct, as far as
// pages are large and stages many:
//
//   | SharedMemory | K pages [stages] | V pages [stages] |
//
// x_at(base, ..) has the struct at `base`, x_at(..) counts from its start.
template <class Cut, int HeadDim>
struct SharedMemory : BarrierAddresses {
    static constexpr int kPanelBytes = Cut::kGroupQueries * 128;
    static constexpr int kPanels = HeadDim / kPanelCols;
    using Panel = unsigned char[kPanelBytes];

    RingBarriers barriers;
    std::int32_t counts[kPairKinds];                  // pages of each kind
    std::int32_t block_at[RingBarriers::kMaxStages];  // which block's pages are in a stage
    std::uint32_t rises[Cut::kGroups][2];             // whether a score passed its reference (softmax.cuh)
    alignas(512) float shift[Cut::kGroups][Cut::kGroupQueries];
    float taken[Cut::kTileQueries];  // what K's shift took from each query's scores
    alignas(kSwizzleAlign) Panel query[Cut::kGroups][kPanels];
    Panel probability[Cut::kGroups][2];  // of two pages

    HSB_HOST_DEVICE static constexpr std::uint32_t rises_at(std::uint32_t base, int group, int buffer) {
        return base + offsetof(SharedMemory, rises) + (group * 2 + buffer) * 4;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t shift_at(std::uint32_t base, int group, int query) {
        return base + offsetof(SharedMemory, shift) + (group * Cut::kGroupQueries + query) * 4;
    }
    // `query`: of the tile's.
    HSB_HOST_DEVICE static constexpr std::uint32_t taken_at(std::uint32_t base, int query) {
        return base + offsetof(SharedMemory, taken) + query * 4;
    }
    HSB_HOST_DEVICE static constexpr int query_at(int group) {
        return at(offsetof(SharedMemory, query), group, kPanels * kPanelBytes);
    }
    HSB_HOST_DEVICE static constexpr int probability_at(int group) {
        return at(offsetof(SharedMemory, probability), group, 2 * kPanelBytes);
    }
    HSB_HOST_DEVICE static constexpr int key_at(const RingShape &ring, int stage) {
        return at(sizeof(SharedMemory), stage, ring.key_bytes);
    }
    HSB_HOST_DEVICE static constexpr int value_at(const RingShape &ring, int stage) {
        return at(key_at(ring, ring.stages), stage, ring.value_bytes);
    }
    HSB_HOST_DEVICE static constexpr int bytes(const RingShape &ring) { return value_at(ring, ring.stages); }

    // What is zero at first: from counts to the queries.
    HSB_HOST_DEVICE static constexpr int zero_begin() { return static_cast<int>(offsetof(SharedMemory, counts)); }
    HSB_HOST_DEVICE static constexpr int zero_end() { return query_at(0); }

private:
    HSB_HOST_DEVICE static constexpr int at(std::size_t array, int index, int element_bytes) {
        return static_cast<int>(array) + index * element_bytes;
    }
};

template <class Cut, int HeadDim>
constexpr bool fits() {
    using Shared = SharedMemory<Cut, HeadDim>;
    static_assert(Shared::kPanelBytes % kSwizzleAlign == 0, "the swizzle counts from a panel's start");
    static_assert(sizeof(Shared) % kSwizzleAlign == 0, "pages follow, and their swizzle counts from there");
    constexpr RingShape kLeast{largest_page_bytes(HeadDim), largest_page_bytes(HeadDim), 2};
    static_assert(Shared::bytes(kLeast) <= kSharedLimitSm90, "two pairs of the largest pages must fit");
    return true;
}
static_assert(fits<TwoGroups, 64>() && fits<TwoGroups, 128>() && fits<ThreeGroups, 64>() && fits<ThreeGroups, 128>());

// What a stage takes for pages of so many bytes.
HSB_HOST_DEVICE constexpr int stage_bytes(int page_bytes) {
    return (page_bytes + kSwizzleAlign - 1) / kSwizzleAlign * kSwizzleAlign;
}

// As many stages as fit; 0 where not even two do.
template <class Shared>
RingShape choose_ring(int key_page_bytes, int value_page_bytes, int shared_bytes) {
    RingShape ring{stage_bytes(key_page_bytes), stage_bytes(value_page_bytes), RingShape::kMaxStages};
    while (ring.stages > 0 && Shared::bytes(ring) > shared_bytes) --ring.stages;
    if (ring.stages < 2) ring.stages = 0;
    return ring;
}

}  // namespace hsb::cuda::prefill::sm90

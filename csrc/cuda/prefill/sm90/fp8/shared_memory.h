// What a block of threads keeps in shared memory, for the kernel and for the launcher.
#pragma once

#include "cuda/prefill/sm90/shared_memory.h"
#include "plan.h"

namespace hsb::cuda::prefill::sm90::fp8 {

// A group's queries and probabilities are one panel each, rows of head_dim and of 64 bytes, swizzled as page.cuh draws it. After
// the struct, as far as pages are large and stages many, and where tiles have so many pages that sums are moved:
//
//   | SharedMemory | K pages [stages] | V pages [stages] | moved sums |
//
// x_at(base, ..) has the struct at `base`, x_at(..) counts from its start.
template <class Cut, int HeadDim>
struct SharedMemory : BarrierAddresses {
    static constexpr int kQueryBytes = Cut::kGroupQueries * HeadDim;
    static constexpr int kProbabilityBytes = Cut::kGroupQueries * kBlock;
    static constexpr int kMovedBytes = Cut::kGroupQueries * HeadDim * 4;  // of a group
    // Panels of 64 of the output's head dims, which takes this place when all is done.
    static constexpr int kOutputPanelBytes = Cut::kGroupQueries * 128;
    struct alignas(kSwizzleAlign) Operands {
        unsigned char query[kQueryBytes];
        unsigned char probability[2][kProbabilityBytes];  // of two pages
    };
    static_assert(kQueryBytes % 512 == 0 && kProbabilityBytes % 512 == 0, "their swizzles count from there");
    static_assert(HeadDim / 64 * kOutputPanelBytes <= static_cast<int>(sizeof(Operands)), "the output's place");

    RingBarriers barriers;
    std::int32_t counts[kPairKinds];                  // pages of each kind
    std::int32_t block_at[RingBarriers::kMaxStages];  // which block's pages are in a stage
    std::uint32_t rises[Cut::kGroups][2];             // whether a score passed its reference (softmax.cuh)
    std::uint32_t large[Cut::kGroups];                // whether a group's scores were ever too large (references.cuh)
    alignas(8) float scale[Cut::kGroups][2];          // of a group's scores: as pages take it, and as it is
    alignas(512) float shift[Cut::kGroups][Cut::kGroupQueries];
    float taken[Cut::kTileQueries];  // what K's shift took from each query's scores
    Operands operands[Cut::kGroups];

    HSB_HOST_DEVICE static constexpr std::uint32_t rises_at(std::uint32_t base, int group, int buffer) {
        return base + offsetof(SharedMemory, rises) + (group * 2 + buffer) * 4;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t large_at(std::uint32_t base, int group) {
        return base + offsetof(SharedMemory, large) + group * 4;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t scale_at(std::uint32_t base, int group) {
        return base + offsetof(SharedMemory, scale) + group * 8;
    }
    HSB_HOST_DEVICE static constexpr std::uint32_t shift_at(std::uint32_t base, int group, int query) {
        return base + offsetof(SharedMemory, shift) + (group * Cut::kGroupQueries + query) * 4;
    }
    // `query`: of the tile's.
    HSB_HOST_DEVICE static constexpr std::uint32_t taken_at(std::uint32_t base, int query) {
        return base + offsetof(SharedMemory, taken) + query * 4;
    }
    HSB_HOST_DEVICE static constexpr int query_at(int group) {
        return at(offsetof(SharedMemory, operands), group, sizeof(Operands));
    }
    HSB_HOST_DEVICE static constexpr int probability_at(int group) { return query_at(group) + kQueryBytes; }
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
    HSB_HOST_DEVICE static constexpr int at(std::size_t array, int index, std::size_t element_bytes) {
        return static_cast<int>(array + index * element_bytes);
    }
};

template <class Cut, int HeadDim>
constexpr bool fits() {
    using Shared = SharedMemory<Cut, HeadDim>;
    constexpr int kPage = largest_page_bytes(HeadDim, fp8::Kinds());
    constexpr RingShape kLeast{kPage, kPage, 2};
    static_assert(Shared::bytes(kLeast) + Cut::kGroups * Shared::kMovedBytes <= kSharedLimitSm90,
                  "two pairs of the largest pages and moved sums must fit");
    return true;
}
static_assert(fits<TwoGroups, 64>() && fits<TwoGroups, 128>() && fits<ThreeGroups, 64>() && fits<ThreeGroups, 128>());

}  // namespace hsb::cuda::prefill::sm90::fp8

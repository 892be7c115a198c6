// Which blocks become 2:4: per head the `sparse` lowest keys, ties to the lower index; then the map. One CTA per head.
//
// The threshold, the key of rank `sparse`, is built from its top bit down: a bit is set if fewer than `sparse` keys lie
// below the candidate. What lies below it is chosen, and of what equals it as many as are missing.
#pragma once

#include <cstdint>

#include "head_blocks.cuh"
#include "loss.cuh"

namespace hsb::cuda {

struct ChooseArgs {
    const unsigned long long *keys;  // [heads, eligible]
    const unsigned long long
        *limbs;         // [heads, eligible, kLossLimbs] where a key's lowest bit is set; NULL where keys tell all
    std::int32_t *map;  // [heads, blocks]
    HeadBlocks blocks;  // 0 < sparse < eligible
    int key_bits;
};

constexpr int kChooseThreads = 1024;
constexpr int kChooseWarps = kChooseThreads / 32;

// Sum of every thread's `mine`. `room` [kChooseWarps] must not be the one of the call before.
__device__ __forceinline__ std::uint32_t sum_over_threads(std::uint32_t mine, std::uint32_t *room) {
    const int lane = threadIdx.x % 32;
    mine = __reduce_add_sync(~0u, mine);
    if (lane == 0) room[threadIdx.x / 32] = mine;
    __syncthreads();
    return __reduce_add_sync(~0u, room[lane]);
}

// Sum of `mine` over the threads before this one.
__device__ __forceinline__ std::uint32_t sum_before(std::uint32_t mine, std::uint32_t *room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    std::uint32_t up_to = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const std::uint32_t other = __shfl_up_sync(~0u, up_to, step);
        if (lane >= step) up_to += other;
    }
    __syncthreads();
    if (lane == 31) room[warp] = up_to;
    __syncthreads();
    return up_to - mine + __reduce_add_sync(~0u, lane < warp ? room[lane] : 0);
}

__device__ __forceinline__ int compare_limbs(const unsigned long long *a, const unsigned long long *b) {
    for (int i = 0; i < kLossLimbs; ++i)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

__global__ void __launch_bounds__(kChooseThreads) choose_blocks(ChooseArgs a) {
    __shared__ std::uint32_t room[3][kChooseWarps];
    const std::uint32_t head = blockIdx.x, thread = threadIdx.x;
    const HeadBlocks &blocks = a.blocks;
    const std::uint32_t eligible = blocks.last - blocks.first;
    const unsigned long long *keys = a.keys + std::int64_t{head} * eligible;
    const unsigned long long *limbs = a.limbs + std::int64_t{head} * eligible * kLossLimbs;
    std::int32_t *map = a.map + std::int64_t{head} * blocks.entries;

    const auto count_below = [&](unsigned long long limit, std::uint32_t *where) {
        std::uint32_t count = 0;
        for (std::uint32_t i = thread; i < eligible; i += kChooseThreads) count += __ldg(keys + i) < limit;
        return sum_over_threads(count, where);
    };
    unsigned long long threshold = 0;
    for (int bit = a.key_bits - 1; bit >= 0; --bit) {
        const unsigned long long candidate = threshold | 1ull << bit;
        if (count_below(candidate, room[bit & 1]) < blocks.sparse) threshold = candidate;
    }
    const std::uint32_t missing = blocks.sparse - count_below(threshold, room[1]);  // bit 0 was counted in room[0]

    // From here on a thread takes successive blocks.
    const std::uint32_t share = (blocks.count + kChooseThreads - 1) / kChooseThreads;
    const std::uint32_t begin = thread * share < blocks.count ? thread * share : blocks.count;
    const std::uint32_t end = begin + share < blocks.count ? begin + share : blocks.count;
    std::uint32_t equal = 0;
    for (std::uint32_t i = begin; i < end; ++i)
        equal += blocks.is_eligible(i) && __ldg(keys + i - blocks.first) == threshold;
    std::uint32_t rank = sum_before(equal, room[2]);
    // Keys that do not tell all: the rank among the equals is found by comparing them one by one. Rare.
    const bool by_limbs = a.limbs && threshold & 1;
    std::uint32_t chosen = 0;
    for (std::uint32_t i = begin; i < end; ++i) {
        bool choose = false;
        if (blocks.is_eligible(i)) {
            const std::uint32_t mine = i - blocks.first;
            const unsigned long long key = __ldg(keys + mine);
            choose = key < threshold;
            if (key == threshold) {
                std::uint32_t place = rank++;
                if (by_limbs) {
                    place = 0;
                    for (std::uint32_t j = 0; j < eligible; ++j) {
                        if (j == mine || __ldg(keys + j) != threshold) continue;
                        const int order = compare_limbs(limbs + j * kLossLimbs, limbs + mine * kLossLimbs);
                        place += order < 0 || (order == 0 && j < mine);
                    }
                }
                choose = place < missing;
            }
        }
        map[i] = choose;
        chosen += choose;
    }
    std::uint32_t before = sum_before(chosen, room[2]);
    for (std::uint32_t i = begin; i < end; ++i) {
        const bool is_sparse = map[i];
        map[i] = blocks.entry(head, i, is_sparse, before);
        before += is_sparse;
    }
}

}  // namespace hsb::cuda

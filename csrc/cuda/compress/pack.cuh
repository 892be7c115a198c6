// Packs blocks into pages (cuda/page.cuh). A warp takes a part of a block on its own: no barrier among warps, and shared
// memory only turns the metadata round.
//
//   K   a strip of 16 tokens                          V   64 head dims of all 64 tokens
//
//       tokens 16                                         lane (d, t) holds 8 head dims x 16 tokens, so that it has
//       x head_dim: 16-byte chunks                        whole 16-byte chunks of 8 page rows:
//       in the tensor's order, 32 at a time               2:4    tokens 16 t .. 16 t + 15: one chunk of kept values a row
//                                                         dense  tokens 8 t .. 8 t + 7 and 32 more: two chunks a row
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/page_pool.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "params.h"
#include "prune.cuh"

namespace hsb::cuda {

struct PackArgs {
    const std::uint16_t *x;      // [heads, seq, head_dim]; heads of all batches
    Pools<unsigned char> pools;  // dense [heads * (blocks - sparse), page], 2:4 [heads * sparse, page]
    std::int32_t *map;           // [heads, blocks]
    unsigned long long *non_finite;
    std::int64_t seq;
    std::uint32_t blocks;        // of one head
    std::uint32_t first, last;   // eligible: those that are 2:4 where all are
    std::uint32_t sparse_count;  // of one head
    std::uint32_t items;         // warps in all
    std::uint32_t infinity;      // infinity_bits(dtype)
};

constexpr int kPackWarps = 4;

template <int HeadDim, int Operand>
constexpr int kPackParts = Operand == HSB_KEY ? kBlock / kStripRows : HeadDim / 64;  // warps that share a block

// The map entry of a block where all eligible blocks are 2:4, or none is.
__device__ __forceinline__ std::int32_t entry_of_all(const PackArgs &a, std::uint32_t head, std::uint32_t block) {
    if (a.sparse_count == 0) return entry_of(HSB_DENSE, head * a.blocks + block);
    if (block >= a.first && block < a.last) return entry_of(HSB_SPARSE_2_4, head * a.sparse_count + block - a.first);
    const std::uint32_t before = block < a.first ? block : block - a.sparse_count;
    return entry_of(HSB_DENSE, head * (a.blocks - a.sparse_count) + before);
}

// A strip of K: rows are tokens, `rows` of the block exist. Returns whether anything is not finite, in the sign bits.
template <int HeadDim>
__device__ __forceinline__ std::uint32_t pack_key(const std::uint16_t *block, int rows, int strip, bool is_2_of_4,
                                                  unsigned char *page, std::uint32_t carry, uint4 *metadata, int lane) {
    using Shape = KeyPage<HeadDim>;
    constexpr int kRowChunks = HeadDim / 8;
    constexpr int kLoads = kStripRows * kRowChunks / 32;
    constexpr int kRowsApart = 32 / kRowChunks;  // from one load to the next
    const int row0 = strip * kStripRows + lane / kRowChunks, chunk = lane % kRowChunks;

    uint4 x[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        const int row = row0 + i * kRowsApart;
        x[i] = row < rows ? ptx::load_once_16(block + row * HeadDim + chunk * 8) : uint4{0, 0, 0, 0};
    }
    std::uint32_t overflow = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) overflow |= overflow_of(x[i], carry);

    if (!is_2_of_4) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) ptx::store_16(page + Shape::dense_chunk(row0 + i * kRowsApart, chunk), x[i]);
        return overflow;
    }
    // A lane's 8 values leave it 8 bytes, half a chunk. So neighbours share out two loads: the even lane takes both
    // halves of the first, the odd lane both of the second.
    const bool odd = lane & 1;
#pragma unroll
    for (int i = 0; i < kLoads; i += 2) {
        std::uint32_t groups[4];
        split_groups(x[i], groups);
        const KeptPairs a = keep_2_of_4<0>(groups);
        split_groups(x[i + 1], groups);
        const KeptPairs b = keep_2_of_4<0>(groups);
        const std::uint32_t codes_a = (a.codes | a.codes >> 12) & 0xff, codes_b = (b.codes | b.codes >> 12) & 0xff;
        const std::uint32_t low = __shfl_xor_sync(~0u, odd ? a.low : b.low, 1);
        const std::uint32_t high = __shfl_xor_sync(~0u, odd ? a.high : b.high, 1);
        const std::uint32_t codes = __shfl_xor_sync(~0u, odd ? codes_a : codes_b, 1);
        const int row = row0 + (odd ? i + 1 : i) * kRowsApart;
        ptx::store_16(page + Shape::value_chunk(row, chunk / 2),
                      odd ? uint4{low, high, b.low, b.high} : uint4{a.low, a.high, low, high});
        // The 16 bits of 4 groups stand together.
        const MetadataPlace place = metadata_place(row % kStripRows, chunk / 2 % 4 * 4);
        const int word = chunk / 8 * 32 + place.lane;
        reinterpret_cast<std::uint16_t *>(metadata)[word * 2 + place.bit / 16] =
            static_cast<std::uint16_t>(odd ? codes | codes_b << 8 : codes_a | codes << 8);
    }
    __syncwarp();
    if (lane < Shape::kPairs * 8) ptx::store_16(page + Shape::metadata_word(strip, 0, 0) + lane * 16, metadata[lane]);
    return overflow;
}

// 64 head dims of V, from `part` * 64 on: page rows are head dims.
template <int HeadDim>
__device__ __forceinline__ std::uint32_t pack_value(const std::uint16_t *block, int rows, int part, bool is_2_of_4,
                                                    unsigned char *page, std::uint32_t carry, uint4 *metadata,
                                                    int lane) {
    using Shape = ValuePage<HeadDim>;
    static_assert(Shape::kPairs == 1, "a block is one pair of steps");
    // Eight lanes take 4 x 8 head dims of two token runs: they read 64 bytes and write 32 in a row, whole sectors both.
    const int dims = (lane & 3) | (lane >> 1 & 4), run = (lane >> 2 & 1) | (lane >> 3 & 2);
    const int row0 = part * 64 + dims * 8;
    const int token0 = is_2_of_4 ? run * 16 : run * 8, token8 = is_2_of_4 ? run * 16 + 8 : run * 8 + 32;

    std::uint32_t x[16][4];
#pragma unroll
    for (int t = 0; t < 16; ++t) {
        const int token = t < 8 ? token0 + t : token8 + t - 8;
        const uint4 loaded = token < rows ? ptx::load_once_16(block + token * HeadDim + row0) : uint4{0, 0, 0, 0};
        x[t][0] = loaded.x;
        x[t][1] = loaded.y;
        x[t][2] = loaded.z;
        x[t][3] = loaded.w;
    }
    std::uint32_t overflow = 0;
#pragma unroll
    for (int t = 0; t < 16; ++t) overflow |= overflow_of(uint4{x[t][0], x[t][1], x[t][2], x[t][3]}, carry);

    if (!is_2_of_4) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint4 even, odd;
                const auto two = [&](int t, std::uint32_t &low, std::uint32_t &high) {
                    const std::uint32_t a = x[half * 8 + t][pair], b = x[half * 8 + t + 1][pair];
                    low = ptx::low_halves(a, b);
                    high = ptx::high_halves(a, b);
                };
                two(0, even.x, odd.x);
                two(2, even.y, odd.y);
                two(4, even.z, odd.z);
                two(6, even.w, odd.w);
                ptx::store_16(page + Shape::dense_chunk(row0 + pair * 2, half * 4 + run), even);
                ptx::store_16(page + Shape::dense_chunk(row0 + pair * 2 + 1, half * 4 + run), odd);
            }
        return overflow;
    }
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        uint4 even, odd;
        std::uint32_t codes = 0;
        const auto prune = [&](auto group, std::uint32_t &low, std::uint32_t &high) {
            constexpr int g = decltype(group)::value;
            const std::uint32_t of_group[4] = {x[g * 4][pair], x[g * 4 + 1][pair], x[g * 4 + 2][pair],
                                               x[g * 4 + 3][pair]};
            const KeptPairs kept = keep_2_of_4<g * 4>(of_group);
            low = kept.low;
            high = kept.high;
            codes |= kept.codes;
        };
        prune(std::integral_constant<int, 0>(), even.x, odd.x);
        prune(std::integral_constant<int, 1>(), even.y, odd.y);
        prune(std::integral_constant<int, 2>(), even.z, odd.z);
        prune(std::integral_constant<int, 3>(), even.w, odd.w);
        ptx::store_16(page + Shape::value_chunk(row0 + pair * 2, run), even);
        ptx::store_16(page + Shape::value_chunk(row0 + pair * 2 + 1, run), odd);
        const int strip = dims / 2;
#pragma unroll
        for (int which = 0; which < 2; ++which) {
            const MetadataPlace place = metadata_place(dims % 2 * 8 + pair * 2 + which, run * 4);
            reinterpret_cast<std::uint16_t *>(metadata)[(strip * 32 + place.lane) * 2 + place.bit / 16] =
                static_cast<std::uint16_t>(which ? codes >> 16 : codes);
        }
    }
    __syncwarp();
    ptx::store_16(page + Shape::metadata_word(part * 4, 0, 0) + lane * 16, metadata[lane]);
    return overflow;
}

// One item per warp: part `item % parts` of block `item / parts`. With Chosen the map is read, else all eligible blocks
// are 2:4 or none, and the map is written.
template <int HeadDim, int Operand, bool Chosen>
__global__ void __launch_bounds__(kPackWarps * 32, Operand == HSB_KEY ? 8 : 4) pack_pages(PackArgs a) {
    constexpr int kParts = kPackParts<HeadDim, Operand>;
    __shared__ uint4 metadata[kPackWarps][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::uint32_t item = blockIdx.x * kPackWarps + warp;
    if (item >= a.items) return;
    const std::uint32_t index = item / kParts, part = item % kParts;
    const std::uint32_t head = index / a.blocks, block = index % a.blocks;
    std::int32_t entry;
    if (Chosen) {
        entry = __ldg(a.map + index);
    } else {
        entry = entry_of_all(a, head, block);
        if (part == 0 && lane == 0) a.map[index] = entry;
    }
    const std::int64_t begin = (head * a.seq + std::int64_t{block} * kBlock) * HeadDim;
    const std::int64_t left = a.seq - std::int64_t{block} * kBlock;
    const int rows = left < kBlock ? static_cast<int>(left) : kBlock;
    const bool is_2_of_4 = kind_of(entry) == HSB_SPARSE_2_4;
    unsigned char *page = a.pools.page<HeadDim>(entry).at;
    const std::uint32_t carry = non_finite_carry(a.infinity);
    std::uint32_t overflow;
    if constexpr (Operand == HSB_KEY)
        overflow = pack_key<HeadDim>(a.x + begin, rows, part, is_2_of_4, page, carry, metadata[warp], lane);
    else
        overflow = pack_value<HeadDim>(a.x + begin, rows, part, is_2_of_4, page, carry, metadata[warp], lane);
    if (__any_sync(~0u, overflow & kSigns))
        note_non_finite(a.x, begin, rows * HeadDim, a.infinity, lane, 32, a.non_finite);
}

}  // namespace hsb::cuda

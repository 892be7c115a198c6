// Packs blocks into pages (cuda/page.cuh). A warp takes a part of a block on its own: no barrier among warps, and shared
// memory only turns the metadata round. A block's kind stores what the warp has read (kinds/*_pack.cuh).
//
//   K   a strip of 16 tokens                          V   64 head dims of all 64 tokens
//
//       tokens 16                                         lane (d, t) holds 8 head dims x 16 tokens, so that it has
//       x head_dim: 16-byte chunks                        whole 16-byte chunks of 8 page rows:
//       in the tensor's order, 32 at a time               2:4    tokens 16 t .. 16 t + 15: one chunk of kept values a row
//                                                         dense  tokens 8 t .. 8 t + 7 and 32 more: two chunks a row
#pragma once

#include <cstdint>

#include "choose.cuh"
#include "cuda/block_kinds.cuh"
#include "cuda/page_pool.cuh"
#include "cuda/ptx/global.cuh"
#include "fit.cuh"
#include "params.h"
#include "prune.cuh"
#include "strip.cuh"

namespace hsb::cuda {

struct PackArgs {
    const std::uint16_t *x;      // [heads, seq, head_dim]; heads of all batches
    Pools<unsigned char> pools;  // of each kind [pages, page bytes]
    std::int32_t *map;           // [heads, blocks]
    unsigned long long *non_finite;
    std::int64_t seq;
    AllOrNone blocks;        // of one head
    std::uint32_t items;     // warps in all
    std::uint32_t infinity;  // infinity_bits(dtype)
};

constexpr int kPackWarps = 4;

// On a multiprocessor: a pruner's own values take registers.
template <int Operand, class Source>
constexpr int kPackCtas = Source::kIsPlain ? (Operand == HSB_KEY ? 8 : 4) : (Operand == HSB_KEY ? 6 : 3);

template <int HeadDim, int Operand>
constexpr int kPackParts = Operand == HSB_KEY ? kBlock / kStripRows : HeadDim / 64;  // warps that share a block

// A strip of K: rows are tokens, `rows` of the block exist. Returns whether anything is not finite, in the sign bits.
template <int HeadDim, class Source>
__device__ __forceinline__ std::uint32_t pack_key(const KeyStrip<HeadDim> &k, const Source &source,
                                                  const std::uint16_t *block, int rows, hsb_block_kind kind,
                                                  unsigned char *page, std::uint32_t carry, uint4 *room, int lane) {
    using Strip = KeyStrip<HeadDim>;
    typename Strip::Chunks x;
#pragma unroll
    for (int i = 0; i < Strip::kLoads; ++i) {
        const int row = k.row0 + i * Strip::kRowsApart;
        x[i] = row < rows ? source.load(block + row * HeadDim, k.chunk) : uint4{0, 0, 0, 0};
    }
    std::uint32_t overflow = 0;
#pragma unroll
    for (int i = 0; i < Strip::kLoads; ++i) overflow |= overflow_of(x[i], carry);
#pragma unroll
    for (int i = 0; i < Strip::kLoads; ++i)  // missing tokens stay zero
        if (!Source::kIsPlain && k.row0 + i * Strip::kRowsApart < rows) x[i] = source.stored(x[i]);
    with_kind(kind, [&](auto of_kind) { of_kind.store_key(k, source, x, page, room, lane); });
    return overflow;
}

// 64 head dims of V, from `part` * 64 on: page rows are head dims.
template <int HeadDim, class Source>
__device__ __forceinline__ std::uint32_t pack_value(const ValueRuns &v, const Source &source,
                                                    const std::uint16_t *block, int rows, hsb_block_kind kind,
                                                    unsigned char *page, std::uint32_t carry, uint4 *room, int lane) {
    ValueRuns::Pairs x;
    const auto first_token = [&](int which) {
        return select_by_kind(kind, [&](auto of_kind) { return of_kind.first_token(v.run, which); });
    };
    const int token0 = first_token(0), token8 = first_token(1);
#pragma unroll
    for (int t = 0; t < 16; ++t) {
        const int token = t < 8 ? token0 + t : token8 + t - 8;
        const uint4 loaded = token < rows ? ptx::load_once_16(block + token * HeadDim + v.row0) : uint4{0, 0, 0, 0};
        x[t][0] = loaded.x;
        x[t][1] = loaded.y;
        x[t][2] = loaded.z;
        x[t][3] = loaded.w;
    }
    std::uint32_t overflow = 0;
#pragma unroll
    for (int t = 0; t < 16; ++t) overflow |= overflow_of(uint4{x[t][0], x[t][1], x[t][2], x[t][3]}, carry);
    if constexpr (!Source::kIsPlain) {
#pragma unroll
        for (int t = 0; t < 16; ++t) {
            if ((t < 8 ? token0 + t : token8 + t - 8) >= rows) continue;  // missing tokens stay zero
            const uint4 stored = source.stored({x[t][0], x[t][1], x[t][2], x[t][3]});
            x[t][0] = stored.x;
            x[t][1] = stored.y;
            x[t][2] = stored.z;
            x[t][3] = stored.w;
        }
    }
    with_kind(kind, [&](auto of_kind) { of_kind.template store_value<HeadDim>(v, source, x, page, room, lane); });
    return overflow;
}

// One item per warp: part `item % parts` of block `item / parts`. With Chosen the map is read, else all eligible blocks
// are 2:4 or none, and the map is written.
template <int HeadDim, int Operand, bool Chosen, class Source>
__global__ void __launch_bounds__(kPackWarps * 32, kPackCtas<Operand, Source>)
    pack_pages(PackArgs a, typename Source::Args fit) {
    constexpr int kParts = kPackParts<HeadDim, Operand>;
    __shared__ uint4 room[kPackWarps][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::uint32_t item = blockIdx.x * kPackWarps + warp;
    if (item >= a.items) return;
    const std::uint32_t index = item / kParts, part = item % kParts;
    const std::uint32_t head = index / a.blocks.count, block = index % a.blocks.count;
    std::int32_t entry;
    if (Chosen) {
        entry = __ldg(a.map + index);
    } else {
        entry = entry_of_all(a.blocks, head, block);
        if (part == 0 && lane == 0) a.map[index] = entry;
    }
    const std::int64_t begin = (head * a.seq + std::int64_t{block} * kBlock) * HeadDim;
    const std::int64_t left = a.seq - std::int64_t{block} * kBlock;
    const int rows = left < kBlock ? static_cast<int>(left) : kBlock;
    const hsb_block_kind kind = kind_of(entry);
    unsigned char *page = page_in<HeadDim>(a.pools, entry).at;
    const std::uint32_t carry = non_finite_carry(a.infinity);
    std::uint32_t overflow;
    if constexpr (Operand == HSB_KEY) {
        using Strip = KeyStrip<HeadDim>;
        const int strip = static_cast<int>(part);
        const Strip k{strip, strip * kStripRows + lane / Strip::kRowChunks, lane % Strip::kRowChunks};
        const Source source(fit, head, block, a.seq, k.chunk);
        overflow = pack_key<HeadDim>(k, source, a.x + begin, rows, kind, page, carry, room[warp], lane);
    } else {
        // Eight lanes take 4 x 8 head dims of two token runs: they read 64 bytes and write 32 in a row, whole sectors.
        const int dims = (lane & 3) | (lane >> 1 & 4), run = (lane >> 2 & 1) | (lane >> 3 & 2);
        const ValueRuns v{static_cast<int>(part), dims, static_cast<int>(part) * 64 + dims * 8, run};
        const Source source(fit, head, block, a.seq, v.part * 8 + dims);
        overflow = pack_value<HeadDim>(v, source, a.x + begin, rows, kind, page, carry, room[warp], lane);
    }
    if (__any_sync(~0u, overflow & kSigns))
        note_non_finite(a.x, begin, rows * HeadDim, a.infinity, lane, 32, a.non_finite);
}

}  // namespace hsb::cuda

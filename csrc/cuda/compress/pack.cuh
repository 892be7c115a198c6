// Packs blocks into pages (cuda/page.cuh). A warp takes a part of a block on its own: no barrier among warps, but where K's
// pages have scales, and shared memory only turns the metadata round. A block's kind stores what the warp has read
// (kinds/*_pack.cuh).
//
//   K   a strip of 16 tokens, as of V in groups along head_dim       V   64 head dims of all 64 tokens
//
//       tokens 16                                         lane (d, t) holds 8 head dims x 16 tokens, so that it has
//       x head_dim: 16-byte chunks                        whole 16-byte chunks of 8 page rows:
//       in the tensor's order, 32 at a time               2:4    tokens 16 t .. 16 t + 15: one chunk of kept values a row
//                                                         dense  tokens 8 t .. 8 t + 7 and 32 more: two chunks a row
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/block_kinds.cuh"
#include "cuda/page_pool.cuh"
#include "cuda/ptx/global.cuh"
#include "fit.cuh"
#include "head_blocks.cuh"
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
    HeadBlocks blocks;
    std::uint32_t items;     // warps in all
    std::uint32_t infinity;  // infinity_bits(dtype)
    bool chosen;             // the map is read; else all eligible blocks are 2:4 or none, and it is written
};

constexpr int kPackWarps = 4;
// Shared memory of a CTA that packs, by warps: metadata, and with scales what these take.
template <class Stored>
using PackRoom = uint4[kPackWarps][(Stored::kPagesHaveScales ? kInt4RoomBytes : 512) / kChunkBytes];

// What is packed, at compile time: an hsb_operand, or V in groups along head_dim; and of which its groups are.
constexpr int kHeadDimValue = 2;
constexpr int groups_of(int operand) { return operand == kHeadDimValue ? HSB_KEY : operand; }
static_assert(HSB_KEY != kHeadDimValue && HSB_VALUE != kHeadDimValue, "a third");

// On a multiprocessor: a pruner's own values take registers, and so do scales of pages, and e4m3 where older chips convert to it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kScaledKeyCtas = 3, kScaledPagesValueCtas = 2;
#else
constexpr int kScaledKeyCtas = 6, kScaledPagesValueCtas = 3;
#endif
template <int Operand, class Source, class Stored>
constexpr int kPackCtas = Stored::kPagesHaveScales   ? (Operand == HSB_VALUE ? kScaledPagesValueCtas
                                                        : Operand == HSB_KEY ? 5
                                                                             : 4)
                          : Operand == HSB_VALUE     ? (Source::kIsPlain ? 4 : 3)
                          : Source::kIsScaled        ? kScaledKeyCtas
                          : Operand == kHeadDimValue ? 5
                          : Source::kIsPlain         ? 8
                                                     : 6;

template <int HeadDim, int Operand>
constexpr int kPackParts =
    groups_of(Operand) == HSB_KEY ? kBlock / kStripRows : HeadDim / 64;  // warps that share a block
static_assert(kPackParts<128, HSB_KEY> == kPackWarps, "a CTA has a block of K");

// run(true_type()) where all tokens of a block are there: then none is asked for by itself.
template <class Run>
__device__ __forceinline__ void with_rows(int rows, Run &&run) {
    if (rows == kBlock)
        run(std::true_type());
    else
        run(std::false_type());
}

// A block and what belongs to it.
template <class Source>
struct PackedBlock {
    const std::uint16_t *x;  // [rows, head_dim]
    int rows;                // that exist
    std::uint32_t head, block;
    std::int64_t seq;
    hsb_block_kind kind;
    unsigned char *page;
    const typename Source::Args &fit;

    __device__ __forceinline__ Source source(int chunk) const { return Source(fit, head, block, seq, chunk); }
};

// A strip of K, or of V in groups along head_dim: rows are tokens. Returns whether anything is not finite.
template <class Kinds, int HeadDim, class Strip, class Source>
__device__ __forceinline__ bool pack_strip(const Strip &k, const PackedBlock<Source> &block, uint4 *room, int lane) {
    typename Strip::Chunks x;
    const auto is_there = [&](int i) { return k.row0 + i * Strip::kRowsApart < block.rows; };
    const std::uint16_t *first = block.x + k.row0 * HeadDim;
    const auto load = [&](int i) { return Source::load(first + i * Strip::kRowsApart * HeadDim, k.chunk); };
    with_rows(block.rows, [&](auto all) {
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i)
            x[i] = decltype(all)::value || is_there(i) ? load(i) : uint4{0, 0, 0, 0};
    });
    const Source source = block.source(k.chunk);
    std::uint32_t seen = 0;
    with_rows(block.rows, [&](auto all) {
#pragma unroll
        for (int i = 0; i < Strip::kLoads; ++i) {
            source.watch(x[i], seen);
            if (decltype(all)::value || is_there(i)) x[i] = source.stored(x[i]);  // missing tokens stay zero
        }
    });
    with_kind<Kinds>(block.kind, [&](auto of_kind) {
        if constexpr (Strip::kIsKey)
            of_kind.store_key(k, source, x, block.page, room, lane);
        else
            of_kind.store_rows(k, source, x, block.page, room, lane);
    });
    return Source::is_seen(seen);
}

// 64 head dims of V, from `part` * 64 on: page rows are head dims.
template <class Kinds, int HeadDim, class Source>
__device__ __forceinline__ bool pack_value(const ValueRuns &v, const PackedBlock<Source> &block, uint4 *room,
                                           int lane) {
    ValueRuns::Pairs x;
    const auto first_token = [&](int which) {
        return select_by_kind<Kinds>(block.kind, [&](auto of_kind) { return of_kind.first_token(v.run, which); });
    };
    const int token0 = first_token(0), token8 = first_token(1);
    const auto is_there = [&](int t) { return (t < 8 ? token0 + t : token8 + t - 8) < block.rows; };
    const std::uint16_t *first = block.x + token0 * HeadDim + v.row0, *second = block.x + token8 * HeadDim + v.row0;
    const auto load = [&](int t) {
        return Source::Memory::chunk(t < 8 ? first + t * HeadDim : second + (t - 8) * HeadDim);
    };
    const auto put = [&](int t, uint4 chunk) {
        x[t][0] = chunk.x;
        x[t][1] = chunk.y;
        x[t][2] = chunk.z;
        x[t][3] = chunk.w;
    };
    const auto chunk_of = [&](int t) { return uint4{x[t][0], x[t][1], x[t][2], x[t][3]}; };
    with_rows(block.rows, [&](auto all) {
#pragma unroll
        for (int t = 0; t < 16; ++t) put(t, decltype(all)::value || is_there(t) ? load(t) : uint4{0, 0, 0, 0});
    });
    const Source source = block.source(v.row0 / 8);
    std::uint32_t seen = 0;
    with_rows(block.rows, [&](auto all) {
#pragma unroll
        for (int t = 0; t < 16; ++t) {
            source.watch(chunk_of(t), seen);
            if (decltype(all)::value || is_there(t)) put(t, source.stored(chunk_of(t)));  // missing tokens stay zero
        }
    });
    with_kind<Kinds>(
        block.kind, [&](auto of_kind) { of_kind.template store_value<HeadDim>(v, source, x, block.page, room, lane); });
    return Source::is_seen(seen);
}

// What a lane has of a part of V. Eight lanes take 4 x 8 head dims of two token runs: they read 64 bytes and write 32 in a row,
// whole sectors.
__device__ __forceinline__ ValueRuns value_runs(int part, int lane) {
    const int dims = (lane & 3) | (lane >> 1 & 4), run = (lane >> 2 & 1) | (lane >> 3 & 2);
    return {part, dims, part * 64 + dims * 8, run};
}

// One item per warp: part `item % parts` of block `item / parts`. A CTA has all strips of a block of K.
template <int HeadDim, int Operand, class Source, class Stored>
__global__ void __launch_bounds__(kPackWarps * 32, kPackCtas<Operand, Source, Stored>)
    pack_pages(PackArgs a, typename Source::Args fit) {
    using Kinds = typename Stored::Kinds;
    constexpr int kParts = kPackParts<HeadDim, Operand>;
    __shared__ PackRoom<Stored> room;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::uint32_t item = blockIdx.x * kPackWarps + warp;
    if (item >= a.items) return;
    const std::uint32_t index = item / kParts, part = item % kParts;
    const std::uint32_t head = index / a.blocks.count, block = index % a.blocks.count;
    const std::uint32_t place = head * a.blocks.entries + block;
    std::int32_t entry;
    if (a.chosen) {
        entry = __ldg(a.map + place);
    } else {
        entry = a.blocks.entry(head, block);
        if (part == 0 && lane == 0) a.map[place] = entry;
    }
    const std::int64_t begin = (head * a.seq + std::int64_t{block} * kBlock) * HeadDim;
    const std::int64_t left = a.seq - std::int64_t{block} * kBlock;
    const int rows = left < kBlock ? static_cast<int>(left) : kBlock;
    const PackedBlock<Source> packed{
        a.x + begin, rows, head, block, a.seq, kind_of(entry), page_in<HeadDim, Kinds>(a.pools, entry).at, fit};
    bool seen;
    if constexpr (Operand == HSB_KEY) {
        using Strip = KeyStrip<HeadDim>;
        const int strip = static_cast<int>(part);
        const Strip k{strip, strip * kStripRows + lane / Strip::kRowChunks, lane % Strip::kRowChunks};
        seen = pack_strip<Kinds, HeadDim>(k, packed, room[warp], lane);
    } else if constexpr (Operand == kHeadDimValue) {
        using Strip = RowStrip<HeadDim>;
        const int strip = static_cast<int>(part);
        const Strip v{strip, strip * kStripRows + lane / Strip::kRowChunks * Strip::kLoads, lane % Strip::kRowChunks};
        seen = pack_strip<Kinds, HeadDim>(v, packed, room[warp], lane);
    } else {
        const ValueRuns v = value_runs(static_cast<int>(part), lane);
        seen = pack_value<Kinds, HeadDim>(v, packed, room[warp], lane);
    }
    if (__any_sync(~0u, seen)) note_non_finite(a.x, begin, rows * HeadDim, a.infinity, lane, 32, a.non_finite);
}

}  // namespace hsb::cuda

// The line of page pairs that decode.cuh cuts (plan.h), and where its pages stand in the block map.
//
// Where all sequences have as many blocks, that is the same place. Where the device alone knows how long each is, the line is of
// the blocks that there are, in the map's order, and a page's place is looked up in the sums of the lengths: by a warp, 32
// sequences at a time, of 32 pages at once, so that it costs a page next to nothing and no register in between.
//
// A head takes a CTA longer than its pages alone. Where the device finds that not all sequences have as many blocks, it
// cuts a line of units: before its pages each head has kHeadCost units that are none, and a part with many short heads gets
// fewer pages.
#pragma once

#include <climits>
#include <cstddef>

#include "cuda/fragments.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "launch.h"

namespace hsb::cuda::decode {

// Of a kernel whose pages stand as in the map.
struct MapLine {
    __device__ int place(int page, int /*end*/) const { return page; }
};

// The pages of one (batch, kv head).
struct Head {
    int index, begin, end;  // of its pages in the line
    int last_valid;         // tokens in its last block
};
struct Parts {
    int first, last;
};

// What a head costs a part besides its pages, in pages: its queries, the merge of the warps, and what others then wait.
constexpr int kHeadCost = 12;

class Line {
public:
    __device__ __forceinline__ Line(const Arguments &a, int lane) : a_(a), lane_(lane) {
        if (!a.lengths) return;
        int blocks = 0, have = 0, least = INT_MAX, most = 0;
        for (int sequence = lane; sequence < a.batch; sequence += 32) {
            const int mine = blocks_of(sequence);
            blocks += mine;
            have += mine > 0;
            most = max(most, mine);
            if (mine > 0) least = min(least, mine);
        }
        const bool is_even = __reduce_max_sync(~0u, most) <= __reduce_min_sync(~0u, least);
        const int cost = is_even ? 0 : kHeadCost;
        const int units = __reduce_add_sync(~0u, blocks + have * cost) * a.kv_heads;
        const Partition partition{units, a.partition.parts};
        const int part = static_cast<int>(blockIdx.x);
        const Cut begin = cut_at(partition.begin(part), cost), end = cut_at(partition.begin(part + 1), cost);
        if (threadIdx.x == 0) {  // every warp has found the same
            store(kUnits, units);
            store(kCost, cost);
            store(kBegin, begin.page);
            store(kEnd, end.page);
            store(kFirst, begin.sequence);
            store(kFirstBegin, begin.sequence_begin);
        }
        __syncthreads();
    }

    // The pages of this CTA's part.
    __device__ int begin() const { return a_.lengths ? load(kBegin) : a_.partition.begin(ptx::block_index()); }
    __device__ int end() const { return a_.lengths ? load(kEnd) : a_.partition.begin(ptx::block_index() + 1); }

    // The parts that have pages of a head: no part between them has none. The whole warp.
    __device__ __forceinline__ Parts parts_of(const Head &head) const {
        if (!a_.lengths) return {a_.partition.part_of(head.begin), a_.partition.part_of(head.end - 1)};
        const Partition partition{load(kUnits), a_.partition.parts};
        const int cost = load(kCost);
        int unit = head.begin;
        if (cost > 0) {
            const int sequence = head.index / a_.kv_heads;
            int have = 0;
            for (int before = ptx::lane(); before < sequence; before += 32) have += __ldg(a_.lengths + before) > 0;
            const int heads = __reduce_add_sync(~0u, have) * a_.kv_heads + head.index - sequence * a_.kv_heads;
            unit += (heads + 1) * cost;
        }
        return {partition.part_of(unit), partition.part_of(unit + head.end - 1 - head.begin)};
    }

    // The head of a page of this part, the same of all lanes.
    __device__ __forceinline__ Head head_of(int page) const {
        if (!a_.lengths) {
            const int head = page / a_.blocks, head_begin = head * a_.blocks;
            return {head, head_begin, head_begin + a_.blocks, a_.last_valid};
        }
        const Sequence sequence = sequence_of(page);
        const int of_sequence = (page - sequence.begin) / sequence.blocks;
        const int head_begin = sequence.begin + of_sequence * sequence.blocks;
        return {sequence.index * a_.kv_heads + of_sequence, head_begin, head_begin + sequence.blocks,
                __ldg(a_.lengths + sequence.index) - (sequence.blocks - 1) * kBlock};
    }

    // Where a page stands in the map; pages of lanes ascend. Beyond `end` it is anywhere.
    __device__ __forceinline__ int place(int page, int end) const {
        if (!a_.lengths) return page;
        const Sequence sequence = sequence_of(min(page, end - 1));
        const int in_sequence = page - sequence.begin, head = in_sequence / sequence.blocks;
        return (sequence.index * a_.kv_heads + head) * a_.blocks + in_sequence - head * sequence.blocks;
    }

    // Sequences of no tokens, which stand nowhere in the line.
    template <class T, int HeadDim>
    __device__ __forceinline__ void clear_empty() const {
        if (!a_.lengths) return;
        const int heads = a_.kv_heads * a_.group;
        for (int sequence = blockIdx.x; sequence < a_.batch; sequence += gridDim.x) {
            if (__ldg(a_.lengths + sequence) > 0) continue;
            const std::int64_t first = static_cast<std::int64_t>(sequence) * heads;
            auto *const out = reinterpret_cast<std::uint32_t *>(static_cast<T *>(a_.out) + first * HeadDim);
            for (int i = threadIdx.x; i < heads * HeadDim / 2; i += blockDim.x) out[i] = 0;
            for (int head = threadIdx.x; head < heads; head += blockDim.x) a_.lse[first + head] = negative_infinity();
        }
    }

private:
    enum Kept { kUnits, kCost, kBegin, kEnd, kFirst, kFirstBegin, kKept };  // places in the room
    static_assert(kKept <= sizeof(MergePlaces::line) / sizeof(std::int32_t), "room for all");

    struct Sequence {
        int index, begin, blocks;  // begin: of its pages in the line; blocks of each of its heads
    };
    // Where a unit lies: how many pages are before it, and its sequence.
    struct Cut {
        int page, sequence, sequence_begin;
    };

    // MergePlaces::line, written once and before any page. What belongs to a head is in registers or derived anew, for a warp
    // may be a head ahead of another. So is this address: there is no register for it.
    __device__ __forceinline__ std::uint32_t room() const {
        extern __shared__ __align__(kStageAlign) unsigned char shared[];
        const int barriers = a_.ring.warps * a_.ring.stages * kBarrierBytes;
        return ptx::shared_address(shared) + a_.ring.ring_bytes() + barriers + offsetof(MergePlaces, line);
    }
    __device__ void store(Kept at, int value) const { ptx::store_shared_u32(room() + at * 4, value); }
    __device__ int load(Kept at) const { return static_cast<int>(ptx::load_shared_u32(room() + at * 4)); }
    __device__ int blocks_of(int sequence) const { return (__ldg(a_.lengths + sequence) + kBlock - 1) / kBlock; }
    // The sum of what lanes up to this one have.
    __device__ __forceinline__ int sum_up_to(int mine) const {
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(~0u, mine, step);
            if (lane_ >= step) mine += other;
        }
        return mine;
    }

    // Of a unit that is the same of all lanes; one behind the line has all pages before it.
    __device__ __forceinline__ Cut cut_at(int unit, int cost) const {
        int pages = 0, units = 0;  // of the sequences before
        for (int first = 0; first < a_.batch; first += 32) {
            const int blocks = first + lane_ < a_.batch ? blocks_of(first + lane_) : 0;
            const int of_head = blocks > 0 ? blocks + cost : 0;
            const int page_end = pages + sum_up_to(blocks * a_.kv_heads);
            const int unit_end = units + sum_up_to(of_head * a_.kv_heads);
            const int at = __popc(__ballot_sync(~0u, unit_end <= unit));
            if (at < 32) {
                const int in_sequence = unit - __shfl_sync(~0u, unit_end - of_head * a_.kv_heads, at);
                const int begin = __shfl_sync(~0u, page_end - blocks * a_.kv_heads, at);
                const int its_blocks = __shfl_sync(~0u, blocks, at), head = in_sequence / (its_blocks + cost);
                const int in_head = in_sequence - head * (its_blocks + cost);
                return {begin + head * its_blocks + max(0, in_head - cost), first + at, begin};
            }
            pages = __shfl_sync(~0u, page_end, 31);
            units = __shfl_sync(~0u, unit_end, 31);
        }
        return {pages, 0, 0};
    }

    // The sequence of a page that is in the line. The whole warp; each lane may have a page of its own.
    __device__ __forceinline__ Sequence sequence_of(int page) const {
        int first = load(kFirst), begin = load(kFirstBegin);  // the part's first sequence, and its pages' begin
        Sequence found{0, 0, 1};
        bool is_found = false;
        do {
            const int mine = first + lane_;
            const int blocks = mine < a_.batch ? blocks_of(mine) : 0;
            const int end = begin + sum_up_to(blocks * a_.kv_heads);  // of the lane's sequence
            int at = 0;  // how many of the 32 end before the page, at most 31
#pragma unroll
            for (int step = 16; step > 0; step /= 2)
                if (__shfl_sync(~0u, end, at + step - 1) <= page) at += step;
            const int of_end = __shfl_sync(~0u, end, at), of_blocks = __shfl_sync(~0u, blocks, at);
            if (!is_found && page < of_end) {
                found = {first + at, of_end - of_blocks * a_.kv_heads, of_blocks};
                is_found = true;
            }
            first += 32;
            begin = __shfl_sync(~0u, end, 31);
        } while (!__all_sync(~0u, is_found) && first < a_.batch);
        return found;
    }

    const Arguments &a_;
    int lane_;
};

}  // namespace hsb::cuda::decode

// The line of page pairs that decode.cuh cuts (plan.h), and where its pages stand in the block map.
//
// Where all sequences have as many blocks, that is the same place. Where the device alone knows how long each is, the line is of
// the blocks that there are, in the map's order, and a page's place is looked up in the sums of the lengths: by a warp, 32
// sequences at a time, of 32 pages at once, so that it costs a page next to nothing and no register in between.
#pragma once

#include "cuda/fragments.cuh"
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

class Line {
public:
    // `room`: MergePlaces::line, where every warp of a CTA writes the same, and reads what it wrote itself.
    __device__ __forceinline__ Line(const Arguments &a, std::uint32_t room, int lane)
        : a_(a), room_(room), lane_(lane) {
        if (!a.lengths) return;
        int blocks = 0;
        for (int sequence = lane; sequence < a.batch; sequence += 32) blocks += blocks_of(sequence);
        const int pages = __reduce_add_sync(~0u, blocks) * a.kv_heads;
        // What is asked for later lies behind the part's first page.
        const Partition partition{pages, a.partition.parts};
        const Sequence first = sequence_of(min(partition.begin(blockIdx.x), pages - 1), 0, 0);
        if (lane == 0) {
            ptx::store_shared_u32(room, pages);
            ptx::store_shared_u32(room + 4, first.index);
            ptx::store_shared_u32(room + 8, first.begin);
        }
        __syncwarp();
    }

    __device__ Partition partition() const {
        if (!a_.lengths) return a_.partition;
        return {static_cast<std::int32_t>(ptx::load_shared_u32(room_)), a_.partition.parts};
    }
    __device__ int begin(int part) const { return partition().begin(part); }

    // The head of a page, the same of all lanes.
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
    struct Sequence {
        int index, begin, blocks;  // begin: of its pages in the line; blocks of each of its heads
    };

    __device__ int blocks_of(int sequence) const { return (__ldg(a_.lengths + sequence) + kBlock - 1) / kBlock; }

    // The sequence of a page that is in the line. The whole warp; each lane may have a page of its own.
    __device__ __forceinline__ Sequence sequence_of(int page) const {
        return sequence_of(page, ptx::load_shared_u32(room_ + 4), ptx::load_shared_u32(room_ + 8));
    }
    // Looks from sequence `first` on, whose pages begin at `begin`.
    __device__ __forceinline__ Sequence sequence_of(int page, int first, int begin) const {
        Sequence found{0, 0, 1};
        bool is_found = false;
        do {
            const int mine = first + lane_;
            const int blocks = mine < a_.batch ? blocks_of(mine) : 0;
            int end = blocks * a_.kv_heads;  // of the lane's sequence
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(~0u, end, step);
                if (lane_ >= step) end += other;
            }
            end += begin;
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
    std::uint32_t room_;
    int lane_;
};

}  // namespace hsb::cuda::decode

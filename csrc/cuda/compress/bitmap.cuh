// MUSTAFAR's bitmap format (hsbench/cache/bitmap.py): which elements of a token to keep, where their values go, and
// the values themselves.
#pragma once

#include <cstdint>

#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/shared.cuh"
#include "prune.cuh"

namespace hsb::cuda {

constexpr int kChunk = 64;       // elements that a bitmap covers
constexpr int kPad = 8;          // values that an offset counts in
constexpr int kRunTokens = 128;  // tokens of a CTA in find_bitmaps: one a thread

struct BitmapArgs {
    const std::uint16_t *x;  // [tokens, head_dim]; tokens of all batches and heads
    std::uint32_t *bitmap;   // [tokens, head_dim / 32] words
    std::uint32_t *offset;   // [tokens, head_dim / 64]
    std::uint16_t *values;
    std::uint32_t *run_units;  // [runs], workspace: units of kPad values of each run of tokens
    long long *total;          // [1]
    unsigned long long *non_finite;
    std::int64_t tokens;
    std::uint32_t runs;
    int keep;
    std::uint32_t infinity;
};

// Turns 16 registers of two 16 x 16 bit matrices (one in the low, one in the high halves) over their diagonals: bit i of
// half h of rows[b] becomes what bit b of half h of rows[i] was.
__device__ __forceinline__ void transpose_bits(std::uint32_t (&rows)[16]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const std::uint32_t a = rows[i], b = rows[i + 8];
        rows[i] = ptx::permute_bytes<0x6240>(a, b);
        rows[i + 8] = ptx::permute_bytes<0x7351>(a, b);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
        const std::uint32_t low = step == 4 ? 0x0f0f0f0f : step == 2 ? 0x33333333 : 0x55555555;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            if (i & step) continue;
            const std::uint32_t a = rows[i], b = rows[i + step];
            rows[i] = (a & low) | ((b << step) & ~low);
            rows[i + step] = ((a >> step) & low) | (b & ~low);
        }
    }
}

// The lowest `count` set bits of `bits`; all where there are fewer.
__device__ __forceinline__ std::uint32_t lowest_set(std::uint32_t bits, int count) {
    if (count >= __popc(bits)) return bits;
    int position = 0;  // bits below it hold at most `count` set ones
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
        const int candidate = position + width;
        if (__popc(bits & ((1u << candidate) - 1)) <= count) position = candidate;
    }
    return bits & ((1u << position) - 1);
}

__device__ __forceinline__ std::uint32_t units_of(std::uint32_t low, std::uint32_t high) {
    return (__popc(low) + __popc(high) + kPad - 1) / kPad;
}

// First call, one token a thread: bitmap, and offsets counted from the start of the CTA's run.
//
// The token's magnitudes are turned into 15 bit planes, one bit an element. Walking down the planes, `open` holds the
// elements that agree with the threshold so far: if at least as many as are still wanted have the bit, the others are out;
// else those that have it are kept and the rest goes on. What is left at the end equals the threshold: lowest indices first.
template <int HeadDim>
__global__ void __launch_bounds__(kRunTokens) find_bitmaps(BitmapArgs a) {
    constexpr int kWords = HeadDim / 32, kRowChunks = HeadDim / 8;
    extern __shared__ uint4 staged[];  // [warp][32 tokens][kRowChunks], chunk c of row r at c ^ (r & 7)
    __shared__ std::uint32_t units_of_warp[kRunTokens / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t first = std::int64_t{blockIdx.x} * kRunTokens + warp * 32, token = first + lane;
    uint4 *rows = staged + warp * 32 * kRowChunks;
#pragma unroll
    for (int i = 0; i < kRowChunks; ++i) {
        const int row = (lane + i * 32) / kRowChunks, chunk = lane % kRowChunks;
        if (first + row < a.tokens)
            ptx::cp_async_16(ptx::shared_address(rows + row * kRowChunks + (chunk ^ (row & 7))),
                             a.x + (first + row) * HeadDim + chunk * 8);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncwarp();

    std::uint32_t kept[kWords] = {};
    if (token < a.tokens) {
        std::uint32_t plane[kWords][16], overflow = 0;
        const std::uint32_t carry = non_finite_carry(a.infinity);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            uint4 x[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[i] = rows[lane * kRowChunks + ((w * 4 + i) ^ (lane & 7))];
                overflow |= overflow_of(x[i], carry);
            }
            // Element i of the word in a low half, i + 16 in the high one.
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const std::uint32_t low[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
                const std::uint32_t high[4] = {x[i + 2].x, x[i + 2].y, x[i + 2].z, x[i + 2].w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    plane[w][i * 8 + j * 2] = ptx::low_halves(low[j], high[j]);
                    plane[w][i * 8 + j * 2 + 1] = ptx::high_halves(low[j], high[j]);
                }
            }
            transpose_bits(plane[w]);
        }
        std::uint32_t open[kWords];
#pragma unroll
        for (int w = 0; w < kWords; ++w) open[w] = ~0u;
        int wanted = a.keep;
#pragma unroll
        for (int bit = 14; bit >= 0; --bit) {
            int count = 0;
#pragma unroll
            for (int w = 0; w < kWords; ++w) count += __popc(open[w] & plane[w][bit]);
            const std::uint32_t taken = count < wanted ? ~0u : 0;
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
                kept[w] |= open[w] & plane[w][bit] & taken;
                open[w] &= plane[w][bit] ^ taken;
            }
            wanted -= taken ? count : 0;
        }
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            const std::uint32_t lowest = lowest_set(open[w], wanted);
            kept[w] |= lowest;
            wanted -= __popc(lowest);
        }
        if (overflow & kSigns) note_non_finite(a.x, token * HeadDim, HeadDim, a.infinity, 0, 1, a.non_finite);
        if constexpr (kWords == 4)
            ptx::store_16(a.bitmap + token * kWords, uint4{kept[0], kept[1], kept[2], kept[3]});
        else
            *reinterpret_cast<uint2 *>(a.bitmap + token * kWords) = uint2{kept[0], kept[1]};
    }
    // Units before this token: within the warp, then the warps before.
    std::uint32_t mine = units_of(kept[0], kept[1]);
    const std::uint32_t of_first_chunk = mine;
    if constexpr (kWords == 4) mine += units_of(kept[2], kept[3]);
    std::uint32_t up_to = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const std::uint32_t other = __shfl_up_sync(~0u, up_to, step);
        if (lane >= step) up_to += other;
    }
    if (lane == 31) units_of_warp[warp] = up_to;
    __syncthreads();
    std::uint32_t before = up_to - mine, all = 0;
#pragma unroll
    for (int i = 0; i < kRunTokens / 32; ++i) {
        if (i < warp) before += units_of_warp[i];
        all += units_of_warp[i];
    }
    if (threadIdx.x == 0) a.run_units[blockIdx.x] = all;
    if (token >= a.tokens) return;
    if constexpr (kWords == 4)
        *reinterpret_cast<uint2 *>(a.offset + token * 2) = uint2{before, before + of_first_chunk};
    else
        a.offset[token] = before;
}

// Turns the runs' units into where each run begins, and reports the total. One CTA; each thread takes successive runs.
constexpr int kScanThreads = 1024;

__global__ void __launch_bounds__(kScanThreads) scan_runs(BitmapArgs a) {
    __shared__ std::uint32_t room[kScanThreads / 32];
    const std::uint32_t thread = threadIdx.x;
    const int lane = thread % 32, warp = thread / 32;
    const std::uint32_t share = (a.runs + kScanThreads - 1) / kScanThreads;
    const std::uint32_t begin = thread * share < a.runs ? thread * share : a.runs;
    const std::uint32_t end = begin + share < a.runs ? begin + share : a.runs;
    std::uint32_t mine = 0;
#pragma unroll 8
    for (std::uint32_t i = begin; i < end; ++i) mine += a.run_units[i];
    std::uint32_t up_to = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const std::uint32_t other = __shfl_up_sync(~0u, up_to, step);
        if (lane >= step) up_to += other;
    }
    if (lane == 31) room[warp] = up_to;
    __syncthreads();
    std::uint32_t before = up_to - mine + __reduce_add_sync(~0u, lane < warp ? room[lane] : 0);
    if (thread == kScanThreads - 1) *a.total = static_cast<long long>(before + mine) * kPad;
    for (std::uint32_t i = begin; i < end; ++i) {
        const std::uint32_t units = a.run_units[i];
        a.run_units[i] = before;
        before += units;
    }
}

template <int HeadDim>
__global__ void __launch_bounds__(256) shift_offsets(BitmapArgs a) {
    constexpr int kChunks = HeadDim / kChunk;
    const std::int64_t i = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
    if (i < a.tokens * kChunks) a.offset[i] += a.run_units[i / (kRunTokens * kChunks)];
}

// Second call: the kept values of 32 bitmaps a warp, put together in shared memory and written as one stretch.
constexpr int kGatherWarps = 4;

__global__ void __launch_bounds__(kGatherWarps * 32) gather_values(BitmapArgs a, std::int64_t chunks) {
    __shared__ uint4 packed[kGatherWarps][32 * kChunk / 8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const std::int64_t first = (std::int64_t{blockIdx.x} * kGatherWarps + warp) * 32, chunk = first + lane;
    if (first >= chunks) return;
    const bool there = chunk < chunks;
    // Lane l: bitmap l of the 32, and where its values go.
    uint2 bits{0, 0};
    std::uint32_t offset = 0;
    if (there) {
        bits = *reinterpret_cast<const uint2 *>(a.bitmap + chunk * 2);
        offset = a.offset[chunk];
    }
    // Load i: 4 chunks, 8 lanes each.
    const int piece = lane % 8;
    uint4 x[8];
    std::uint32_t overflow = 0;
    const std::uint32_t carry = non_finite_carry(a.infinity);
#pragma unroll
    for (int i = 0; i < 8; ++i)
        x[i] = first + i * 4 + lane / 8 < chunks ? ptx::load_once_16(a.x + (first + i * 4) * kChunk + lane * 8)
                                                 : uint4{0, 0, 0, 0};
    const std::uint32_t start = __shfl_sync(~0u, offset, 0);
    const int last = chunks - first < 32 ? static_cast<int>(chunks - first) - 1 : 31;
    const std::uint32_t units = __shfl_sync(~0u, offset + units_of(bits.x, bits.y), last) - start;
    auto *values = reinterpret_cast<std::uint16_t *>(packed[warp]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int from = i * 4 + lane / 8;
        const std::uint32_t low = __shfl_sync(~0u, bits.x, from), high = __shfl_sync(~0u, bits.y, from);
        const std::uint32_t base = (__shfl_sync(~0u, offset, from) - start) * kPad;
        overflow |= overflow_of(x[i], carry);
        if (from > last) continue;
        const std::uint32_t word = piece < 4 ? low : high, shift = piece % 4 * 8;
        const std::uint32_t mine = word >> shift;
        std::uint16_t *to = values + base + __popc(word & ((1u << shift) - 1)) + (piece < 4 ? 0 : __popc(low));
        const std::uint32_t elements[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (mine >> j & 1) *to++ = static_cast<std::uint16_t>(j % 2 ? elements[j / 2] >> 16 : elements[j / 2]);
        const std::uint32_t all = __popc(low) + __popc(high);
        if (all + piece < (all + kPad - 1) / kPad * kPad) values[base + all + piece] = 0;
    }
    __syncwarp();
    for (std::uint32_t i = lane; i < units; i += 32)
        ptx::store_16(a.values + (std::int64_t{start} + i) * kPad, packed[warp][i]);
    if (__any_sync(~0u, overflow & kSigns)) {
        const std::int64_t count = (last + 1) * kChunk;
        note_non_finite(a.x, first * kChunk, static_cast<int>(count), a.infinity, lane, 32, a.non_finite);
    }
    if (first + last == chunks - 1 && lane == last) *a.total = (std::int64_t{start} + units) * kPad;
}

}  // namespace hsb::cuda

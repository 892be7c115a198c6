// One query per head over K and V in bitmap form, on tensor cores: kept values are spread out straight into the registers
// of mma.m16n8k16, as operand A; dense tiles exist nowhere. The query heads that share a kv head are the 8 columns of B.
//
//   scores^T [16 tokens x heads] += K [16 tokens x 16 dims]      q^T [16 dims x heads]
//   out^T    [16 dims x heads]   += V^T [16 dims x 16 tokens]    p^T [16 tokens x heads]
//
// What a row or a column of A stands for is free as long as B, or the result, agrees. It is chosen so that a lane reads a
// few successive kept values, from a place that it finds by counting bits, and so that lanes which read one bitmap read
// next to each other: the order below has 2.0 (K) and 1.3 (V) bank conflicts a load, 16 or 8 successive elements a lane
// would have 2.3 and 2.0. With i = lane / 4, t = lane % 4, of each 64 dims of its tokens a lane has
//
//   K   tokens i, i + 8                          in step s the dims 16 s + 4 t, + 1, + 2, + 3
//   V   tokens 2 t, 2 t + 1, 2 t + 8, 2 t + 9    in strip s the dims 16 s + 2 i, + 1
//
// The softmax runs on the scores where they stand (tokens in rows, heads 2 t and 2 t + 1 in columns); p^T for the second
// product is their transpose, made by movmatrix.
#pragma once

#include <cstdint>

#include "cuda/fragments.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/reserve.cuh"
#include "tile_stream.cuh"

namespace hsb::cuda::decode_bitmap {

// Scores of 16 tokens from `token` of the tile on.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void score(float (&scores)[Tiles][4], std::uint32_t stage, int token,
                                      const LaneElements<4> &elements, const std::uint32_t (&q)[Tiles][HeadDim / 16][2],
                                      int lane) {
    constexpr int kTokenChunks = HeadDim / kChunkElements;
#pragma unroll
    for (int chunk = 0; chunk < kTokenChunks; ++chunk) {
        std::uint32_t a[4][4];  // [step][register]
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            std::uint32_t values[4][4];
            elements.gather(values, stage, (token + half * 8 + lane / 4) * kTokenChunks + chunk);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                a[step][half] = ptx::low_halves(values[step][0], values[step][1]);
                a[step][half + 2] = ptx::low_halves(values[step][2], values[step][3]);
            }
        }
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile)
                ptx::mma_m16n8k16(scores[tile], a[step], q[tile][chunk * 4 + step][0], q[tile][chunk * 4 + step][1],
                                  T());
    }
}

// out += V^T p^T over 16 tokens.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void weigh(float (&out)[Tiles][HeadDim / 16][4], std::uint32_t stage, int token,
                                      const LaneElements<2> &elements, const std::uint32_t (&p)[Tiles][2], int lane) {
    constexpr int kTokenChunks = HeadDim / kChunkElements;
#pragma unroll
    for (int chunk = 0; chunk < kTokenChunks; ++chunk) {
        std::uint32_t a[4][4];  // [strip][register]
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int first = token + half * 8 + lane % 4 * 2;
            std::uint32_t even[4][2], odd[4][2];
            elements.gather(even, stage, first * kTokenChunks + chunk);
            elements.gather(odd, stage, (first + 1) * kTokenChunks + chunk);
#pragma unroll
            for (int strip = 0; strip < 4; ++strip) {
                a[strip][half * 2] = ptx::low_halves(even[strip][0], odd[strip][0]);
                a[strip][half * 2 + 1] = ptx::low_halves(even[strip][1], odd[strip][1]);
            }
        }
#pragma unroll
        for (int strip = 0; strip < 4; ++strip)
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile)
                ptx::mma_m16n8k16(out[tile][chunk * 4 + strip], a[strip], p[tile][0], p[tile][1], T());
    }
}

// What a warp has of its tiles, per lane: heads 2 (lane % 4) and + 1 of each 8 columns.
template <int HeadDim, int Tiles>
struct RunningSoftmax {
    float out[Tiles][HeadDim / 16][4] = {};
    float maximum[Tiles][2];
    float sum[Tiles][2] = {};  // of this lane's tokens only

    __device__ RunningSoftmax() {
        for (auto &of_tile : maximum) of_tile[0] = of_tile[1] = -INFINITY;
    }

    // Takes in scores of some runs of 16 tokens and turns them into probabilities, packed as operand B. The difference
    // from the maximum comes first: it is exact where it matters, however large the scores.
    template <class T, int Runs>
    __device__ __forceinline__ void update(float (&scores)[Runs][Tiles][4], std::uint32_t (&p)[Runs][Tiles][2],
                                           float log2_scale, float reserve) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            float now[2];
#pragma unroll
            for (int head = 0; head < 2; ++head) {
                float largest = -INFINITY;
#pragma unroll
                for (int run = 0; run < Runs; ++run)
                    largest = fmaxf(largest, fmaxf(scores[run][tile][head], scores[run][tile][head + 2]));
#pragma unroll
                for (int lanes = 4; lanes < 32; lanes *= 2)
                    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
                now[head] = fmaxf(maximum[tile][head], largest);
            }
            if (__any_sync(~0u, now[0] > maximum[tile][0] || now[1] > maximum[tile][1])) {
#pragma unroll
                for (int head = 0; head < 2; ++head) {
                    const float shrink = ptx::exp2_approx((maximum[tile][head] - now[head]) * log2_scale);
                    maximum[tile][head] = now[head];
                    sum[tile][head] *= shrink;
#pragma unroll
                    for (int strip = 0; strip < HeadDim / 16; ++strip) {
                        out[tile][strip][head] *= shrink;
                        out[tile][strip][head + 2] *= shrink;
                    }
                }
            }
#pragma unroll
            for (int run = 0; run < Runs; ++run) {
                float e[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    e[i] = ptx::exp2_approx(exponent<T>(scores[run][tile][i] - now[i % 2], log2_scale, reserve));
                    sum[tile][i % 2] += e[i];
                }
                p[run][tile][0] = ptx::movmatrix_trans(Element<T>::pack(e[0], e[1]));
                p[run][tile][1] = ptx::movmatrix_trans(Element<T>::pack(e[2], e[3]));
            }
        }
    }

    // Writes it all to shared memory: output [head][HeadDim + 1], then maximum [head], sum [head].
    __device__ void store(float *to, int lane) {
        constexpr int kHeads = Tiles * 8;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                const int head = tile * 8 + lane % 4 * 2 + which;
#pragma unroll
                for (int strip = 0; strip < HeadDim / 16; ++strip) {
                    const int dim = strip * 16 + lane / 4 * 2;
                    to[head * (HeadDim + 1) + dim] = out[tile][strip][which];
                    to[head * (HeadDim + 1) + dim + 1] = out[tile][strip][which + 2];
                }
                float all = sum[tile][which];
#pragma unroll
                for (int lanes = 4; lanes < 32; lanes *= 2) all += __shfl_xor_sync(~0u, all, lanes);
                if (lane / 4 == 0) {
                    to[kHeads * (HeadDim + 1) + head] = maximum[tile][which];
                    to[kHeads * (HeadDim + 2) + head] = all;
                }
            }
    }
};

// One split of one (batch, kv head) per CTA. Tiles: 8 query heads each.
template <class T, int HeadDim, int Tiles>
__global__ void __launch_bounds__(kTileWarps * 32, Tiles == 1 ? 4 : 3)
    decode_bitmaps(const __grid_constant__ Arguments a) {
    constexpr int kRuns = tile_tokens(HeadDim) / 16, kTokenChunks = HeadDim / kChunkElements;
    constexpr int kHeads = Tiles * 8;
    static_assert(kHeads * (HeadDim + 3) * 4 <= sizeof(Ring), "a warp's result takes its ring's place");
    extern __shared__ uint4 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = blockIdx.x / a.splits, split = blockIdx.x % a.splits;
    const int first_tile = static_cast<int>(std::int64_t{a.tiles} * split / a.splits);
    const int end_tile = static_cast<int>(std::int64_t{a.tiles} * (split + 1) / a.splits);
    unsigned char *ring = reinterpret_cast<unsigned char *>(shared) + warp * sizeof(Ring);
    const std::uint32_t stages = ptx::shared_address(ring);

    const std::int64_t head_chunk = head * a.seq * kTokenChunks;
    const auto head_chunks = static_cast<std::int32_t>(a.seq * kTokenChunks);
    TileStream k(a.k, head_chunk, head_chunks, a.all_chunks, lane), v(a.v, head_chunk, head_chunks, a.all_chunks, lane);
    int tile = first_tile + warp, at = 0;
    k.look_up(tile, end_tile);
    v.look_up(tile, end_tile);
    if (tile < end_tile) k.load(tile, 0, stages);
    ptx::cp_async_commit();
    if (tile < end_tile) v.load(tile, 0, stages + kStageBytes);
    ptx::cp_async_commit();

    // q^T as operand B: heads past the group are zero.
    std::uint32_t q[Tiles][HeadDim / 16][2];
#pragma unroll
    for (int columns = 0; columns < Tiles; ++columns) {
        const int in_group = columns * 8 + lane / 4;
#pragma unroll
        for (int step = 0; step < HeadDim / 16; ++step) {
            const int dim = step * 16 + lane % 4 * 4;
            uint2 four{0, 0};
            if (in_group < a.group)
                four = *reinterpret_cast<const uint2 *>(static_cast<const std::uint16_t *>(a.q) +
                                                        (std::int64_t{head} * a.group + in_group) * HeadDim + dim);
            q[columns][step][0] = four.x ^ a.flip;
            q[columns][step][1] = four.y ^ a.flip;
        }
    }
    const LaneElements<4> key_elements(lane % 4 * 4);
    const LaneElements<2> value_elements(lane / 4 * 2);
    RunningSoftmax<HeadDim, Tiles> running;
    std::uint32_t key_stage = stages, value_stage = stages + kStageBytes, free_stage = stages + 2 * kStageBytes;

    while (tile < end_tile) {
        const std::uint32_t key_begin = k.begin(at), value_begin = v.begin(at);
        const int next = tile + kTileWarps;
        if (++at == 32) {  // V of this tile is under way already, and no earlier one
            at = 0;
            k.look_up(next, end_tile);
            v.look_up(next, end_tile);
        }
        // The stage asked for next is the one that was read last: all lanes are past that.
        __syncwarp();
        if (next < end_tile) k.load(next, at, free_stage);
        ptx::cp_async_commit();
        ptx::cp_async_wait<2>();
        k.find_places(key_stage, key_begin);
        __syncwarp();
        float scores[kRuns][Tiles][4] = {};
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
            score<T, HeadDim, Tiles>(scores[run], key_stage, run * 16, key_elements, q, lane);
            const std::int64_t token = std::int64_t{tile} * tile_tokens(HeadDim) + run * 16 + lane / 4;
#pragma unroll
            for (int columns = 0; columns < Tiles; ++columns)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (token + i / 2 * 8 >= a.seq) scores[run][columns][i] = -INFINITY;
        }
        std::uint32_t p[kRuns][Tiles][2];
        running.template update<T>(scores, p, a.log2_scale, a.reserve);

        __syncwarp();
        if (next < end_tile) v.load(next, at, key_stage);
        ptx::cp_async_commit();
        ptx::cp_async_wait<2>();
        v.find_places(value_stage, value_begin);
        __syncwarp();
#pragma unroll
        for (int run = 0; run < kRuns; ++run)
            weigh<T, HeadDim, Tiles>(running.out, value_stage, run * 16, value_elements, p[run], lane);
        const std::uint32_t read = value_stage;
        value_stage = key_stage;
        key_stage = free_stage;
        free_stage = read;
        tile = next;
    }

    // The CTA's warps merge: every warp's result stands in its ring's place.
    ptx::cp_async_wait<0>();
    __syncwarp();
    running.store(reinterpret_cast<float *>(ring), lane);
    __syncthreads();
    const auto of_warp = [&](int w) {
        return reinterpret_cast<const float *>(reinterpret_cast<const unsigned char *>(shared) + w * sizeof(Ring));
    };
    float *partial = a.partial + std::int64_t{blockIdx.x} * partial_floats_of(a.group, HeadDim);
    for (int in_group = 0; in_group < a.group; ++in_group) {
        float largest = -INFINITY, weight[kTileWarps];
#pragma unroll
        for (int w = 0; w < kTileWarps; ++w) largest = fmaxf(largest, of_warp(w)[kHeads * (HeadDim + 1) + in_group]);
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kTileWarps; ++w) {
            weight[w] = ptx::exp2_approx((of_warp(w)[kHeads * (HeadDim + 1) + in_group] - largest) * a.log2_scale);
            sum += weight[w] * of_warp(w)[kHeads * (HeadDim + 2) + in_group];
        }
        for (int dim = threadIdx.x; dim < HeadDim; dim += kTileWarps * 32) {
            float out = 0;
#pragma unroll
            for (int w = 0; w < kTileWarps; ++w) out += weight[w] * of_warp(w)[in_group * (HeadDim + 1) + dim];
            partial[in_group * HeadDim + dim] = out;
        }
        if (threadIdx.x == 0) {
            partial[a.group * HeadDim + in_group] = largest;
            partial[a.group * (HeadDim + 1) + in_group] = sum;
        }
    }
}

// One CTA per query head, one thread per head dim: splits in order, so that a result does not depend on who came first.
template <class T, int HeadDim>
__global__ void __launch_bounds__(HeadDim) combine_splits(Arguments a) {
    const std::int64_t row = blockIdx.x;
    const int in_group = static_cast<int>(row % a.group);
    const int floats = partial_floats_of(a.group, HeadDim);
    const float *partial = a.partial + row / a.group * a.splits * floats;
    float largest = -INFINITY;
    for (int i = 0; i < a.splits; ++i) largest = fmaxf(largest, partial[i * floats + a.group * HeadDim + in_group]);
    float out = 0, sum = 0;
#pragma unroll 8
    for (int i = 0; i < a.splits; ++i) {
        const float weight =
            ptx::exp2_approx((partial[i * floats + a.group * HeadDim + in_group] - largest) * a.log2_scale);
        sum += weight * partial[i * floats + a.group * (HeadDim + 1) + in_group];
        out += weight * partial[i * floats + in_group * HeadDim + threadIdx.x];
    }
    const std::int64_t at = row * HeadDim + threadIdx.x;
    static_cast<T *>(a.out)[at] = Element<T>::round(within<T>(out / sum));
    constexpr float kLn2 = 0.693147180559945f;
    if (threadIdx.x == 0) a.lse[row] = largest * a.scale + (logf(sum) + a.reserve * kLn2);
}

template <class T, int HeadDim, int Tiles>
int ctas_per_multiprocessor() {
    const auto kernel = decode_bitmaps<T, HeadDim, Tiles>;
    HSB_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(SharedMemory))));
    // Of what shared memory and L1 have in common, all to shared memory: without being asked, fewer CTAs may fit.
    HSB_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                  cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    int ctas = 0;
    HSB_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas, kernel, kTileWarps * 32, sizeof(SharedMemory)));
    return ctas;
}

template <class T, int HeadDim, int Tiles>
void launch_decode_bitmap(const Arguments &a, std::int64_t heads, void *stream) {
    launch(decode_bitmaps<T, HeadDim, Tiles>, static_cast<unsigned>(heads * a.splits), kTileWarps * 32,
           sizeof(SharedMemory), stream, a);
    launch(combine_splits<T, HeadDim>, static_cast<unsigned>(heads * a.group), HeadDim, 0, stream, a);
}

}  // namespace hsb::cuda::decode_bitmap

// Prefill attention over pages, dense and 2:4 in any mix, with mma.sp and all operands but the page in registers.
//
//   per page pair and warp     K page:  S^T [64 tokens x queries] = K Q^T      Q^T stays in registers
//                              softmax: P^T = 2^(S^T - reference)              in registers (softmax.cuh)
//                              V page:  O^T [head_dim x queries] += V^T P^T    O^T stays in registers
//
// A page is the operand A, read from shared memory by every warp; a warp's queries are the cols of both products, in
// tiles of 8. The more tiles, the fewer reads per product, and the more registers: plan.h draws how the work is cut.
#pragma once

#include "cuda/page_product.cuh"
#include "cuda/ptx/global.cuh"
#include "page_stream.cuh"
#include "softmax.cuh"

namespace hsb::cuda {

struct PrefillArguments {
    const void *q;             // [batch, q_heads, q_len, head_dim]
    void *out;                 // [batch, q_heads, q_len, head_dim]
    float *lse;                // [batch, q_heads, q_len]
    PagePool k;
    PagePool v;
    PrefillStages stages;
    std::int32_t q_len;
    std::int32_t seq;
    std::int32_t heads;        // batch * q_heads
    std::int32_t group;        // query heads per kv head
    std::int32_t tiles;        // per head
    float scale;               // powers of 2 per unit of the product q k; positive, q's sign is flipped instead
    float slack;               // kPrefillSlack in units of the product
    std::uint32_t flip;        // xor of a pair of q's values: their sign bits, or 0
};

// Q^T of a warp's queries, from global memory: B fragments per step of 32 dims. Queries beyond `valid` are zero.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void load_queries(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const T *from,
                                             std::int32_t valid, std::uint32_t flip, int lane) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
        const int query = tile * 8 + lane / 4;
#pragma unroll
        for (int step = 0; step < HeadDim / kStepCols; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const T *pair = from + query * HeadDim + step * kStepCols + i * 8 + lane % 4 * 2;
                q[tile][step][i] = query < valid ? __ldg(reinterpret_cast<const std::uint32_t *>(pair)) ^ flip : 0u;
            }
    }
}

// out [queries, head_dim] and lse [queries] of a warp, as far as `valid`. `room`: shared memory of its own,
// Tiles * 8 * head_dim * 2 bytes, used as panels of 64 dims, swizzled as a dense page's are.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void store_results(T *out, float *lse, PrefillRunning<HeadDim, Tiles> &running,
                                              std::int32_t valid, float scale, unsigned char *room, int lane) {
    constexpr float kLn2 = 0.693147181f;
    const auto chunk_at = [&](int query, int chunk) {
        return room + chunk / 8 * (Tiles * 8 * 128) + swizzled_chunk<128>(query, chunk % 8);
    };
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
        float inverse[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float sum = sum_over_rows(running.sum[tile][i]);
            inverse[i] = 1.0f / sum;
            const int query = tile * 8 + lane % 4 * 2 + i;
            if (lane / 4 == 0 && query < valid) lse[query] = running.offset(tile, i, scale) * kLn2 + logf(sum);
        }
#pragma unroll
        for (int strip = 0; strip < HeadDim / kStripRows; ++strip)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float low = running.out[tile][strip][half * 2] * inverse[0];
                const float high = running.out[tile][strip][half * 2 + 1] * inverse[1];
                const std::uint32_t pair = ptx::movmatrix_trans(pack(within(low, T()), within(high, T()), T()));
                unsigned char *const chunk = chunk_at(tile * 8 + lane / 4, strip * 2 + half);
                *reinterpret_cast<std::uint32_t *>(chunk + lane % 4 * 4) = pair;
            }
    }
    __syncwarp();
    constexpr int kRowChunks = HeadDim / 8;
#pragma unroll
    for (int first = 0; first < Tiles * 8 * kRowChunks; first += 32) {
        const int query = (first + lane) / kRowChunks, chunk = (first + lane) % kRowChunks;
        const uint4 values = *reinterpret_cast<const uint4 *>(chunk_at(query, chunk));
        if (query < valid) ptx::store_16(out + query * HeadDim + chunk * 8, values);
    }
}

template <class T, int HeadDim, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kCtas)
    prefill_sm80_kernel(const __grid_constant__ PrefillArguments a) {
    constexpr int kTiles = Tile::kTiles;
    extern __shared__ __align__(PrefillStages::kAlign) unsigned char shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const std::int32_t head = blockIdx.x % a.heads;
    const std::int32_t tile_first = (a.tiles - 1 - static_cast<std::int32_t>(blockIdx.x / a.heads)) * Tile::kQueries;
    const std::int32_t first = tile_first + warp * Tile::kWarpQueries;  // of this warp's queries
    const std::int32_t valid = a.q_len - first;                         // so many of them exist, if any do
    const std::int64_t row = static_cast<std::int64_t>(head) * a.q_len + first;

    // Query i sees tokens 0 .. i + past. Pages below `whole` are seen by all queries of the warp, from `end` on by none.
    const std::int32_t past = a.seq - a.q_len;
    const std::int32_t last = min(first + Tile::kWarpQueries, a.q_len) - 1;
    const std::int32_t whole = (first + past + 1) / kBlock;
    const std::int32_t end = valid > 0 ? (last + past) / kBlock + 1 : 0;
    const std::int32_t pages = (min(tile_first + Tile::kQueries, a.q_len) - 1 + past) / kBlock + 1;  // of the CTA
    const std::int32_t blocks = (a.seq + kBlock - 1) / kBlock;

    PrefillPageStream<HeadDim, Tile::kWarps> stream(a.k, a.v, a.stages, ptx::shared_address(shared),
                                                    head / a.group * blocks, pages);
    std::uint32_t q[kTiles][HeadDim / kStepCols][4];
    load_queries<T, HeadDim, kTiles>(q, static_cast<const T *>(a.q) + row * HeadDim, valid, a.flip, lane);
    PrefillRunning<HeadDim, kTiles> running;
    running.clear();

#pragma unroll 1
    for (std::int32_t page = 0; page < pages; ++page) {
        stream.wait(page);
        if (page < end) {
            float s[kTiles][kBlock / kStripRows][4] = {};
            if (stream.key_is_sparse(page))
                multiply_sparse<T, KeyPage<HeadDim>>(s, stream.key_address(), q, lane);
            else
                multiply_dense<T, KeyPage<HeadDim>>(s, stream.key_address(), q, lane);
            if (page >= whole) mask_future<kTiles>(s, first + past + lane % 4 * 2 - page * kBlock - lane / 4);

            std::uint32_t p[kTiles][kBlock / kStepCols][4];
            softmax<T, HeadDim, kTiles>(p, s, running, a.scale, a.slack);

            if (stream.value_is_sparse(page))
                multiply_sparse<T, ValuePage<HeadDim>>(running.out, stream.value_address(), p, lane);
            else
                multiply_dense<T, ValuePage<HeadDim>>(running.out, stream.value_address(), p, lane);
        }
        stream.release();
    }

    __syncthreads();  // all are done with the ring, which now takes the results
    unsigned char *const room = shared + warp * (Tile::kWarpQueries * HeadDim * 2);
    if (valid > 0)
        store_results<T, HeadDim, kTiles>(static_cast<T *>(a.out) + row * HeadDim, a.lse + row, running, valid, a.scale,
                                          room, lane);
}

}  // namespace hsb::cuda

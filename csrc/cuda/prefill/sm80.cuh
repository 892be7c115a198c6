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
#include "cuda/ptx/place.cuh"
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
    std::uint32_t flip;        // xor of a pair of q's values: their sign bits, or 0
};

// Which queries are a warp's: plan.h.
template <class Tile>
struct WarpQueries {
    std::int32_t head;        // of batch * q_heads
    std::int32_t tile_first;  // the CTA's first query
    std::int32_t warp, lane;
    std::int32_t first;       // the warp's
    std::int32_t valid;       // so many of the warp's queries exist, if any do
    std::int64_t row;         // of `first`, among all queries

    __device__ explicit WarpQueries(const PrefillArguments &a) {
        const int block = ptx::block_index(), thread = ptx::thread_index();
        head = block % a.heads;
        tile_first = (a.tiles - 1 - block / a.heads) * Tile::kQueries;
        warp = thread / 32;
        lane = thread % 32;
        first = tile_first + warp * Tile::kWarpQueries;
        valid = a.q_len - first;
        row = static_cast<std::int64_t>(head) * a.q_len + first;
    }
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
            if (lane / 4 == 0 && query < valid) lse[query] = running.offset_log2(tile, i, scale) * kLn2 + logf(sum);
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

// s += K q of the pair's K page.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void multiply_key(Scores<Tiles> &s, const PagePair &pair,
                                             const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], int lane) {
    using Shape = KeyPage<HeadDim>;
    if (pair.key_is_sparse) {
        multiply_sparse<T, Shape, 0>(s[0], pair.key, q, lane);
        multiply_sparse<T, Shape, 2>(s[1], pair.key, q, lane);
    } else {
        multiply_dense<T, Shape, 0>(s[0], pair.key, q, lane);
        multiply_dense<T, Shape, 2>(s[1], pair.key, q, lane);
    }
}

// out += V^T p of the pair's V page.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void multiply_value(float (&out)[Tiles][HeadDim / kStripRows][4], const PagePair &pair,
                                               const Probabilities<Tiles> &p, int lane) {
    using Shape = ValuePage<HeadDim>;
    if (pair.value_is_sparse) {
        multiply_sparse<T, Shape, 0, 0>(out, pair.value, p[0], lane);
        multiply_sparse<T, Shape, 0, 1>(out, pair.value, p[1], lane);
    } else {
        multiply_dense<T, Shape, 0, 0>(out, pair.value, p[0], lane);
        multiply_dense<T, Shape, 0, 1>(out, pair.value, p[1], lane);
    }
}

template <class T, int HeadDim, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kCtas)
    prefill_sm80_kernel(const __grid_constant__ PrefillArguments a) {
    constexpr int kTiles = Tile::kTiles;
    extern __shared__ __align__(PrefillStages::kAlign) unsigned char shared[];
    const WarpQueries<Tile> own(a);
    const int lane = own.lane;

    // Query i sees tokens 0 .. i + past. Pages below `whole` are seen by all queries of the warp, from `end` on by none.
    const std::int32_t past = a.seq - a.q_len;
    const std::int32_t last = min(own.first + Tile::kWarpQueries, a.q_len) - 1;
    const std::int32_t whole = (own.first + past + 1) / kBlock;
    const std::int32_t end = own.valid > 0 ? (last + past) / kBlock + 1 : 0;
    const std::int32_t pages = (min(own.tile_first + Tile::kQueries, a.q_len) - 1 + past) / kBlock + 1;  // of the CTA
    const std::int32_t blocks = (a.seq + kBlock - 1) / kBlock;

    PrefillPageStream<HeadDim, Tile::kWarps> stream(a.k, a.v, a.stages, ptx::shared_address(shared),
                                                    own.head / a.group * blocks, pages);
    std::uint32_t q[kTiles][HeadDim / kStepCols][4];
    load_queries<T, HeadDim, kTiles>(q, static_cast<const T *>(a.q) + own.row * HeadDim, own.valid, a.flip, lane);
    PrefillRunning<HeadDim, kTiles> running;
    running.clear();

#pragma unroll 1
    for (std::int32_t page = 0; page < pages; ++page) {
        const PagePair pair = stream.wait(page);
        if (page < end) {
            Probabilities<kTiles> p;
            float sum[kTiles][2];
            for (bool again = false;;) {
                Scores<kTiles> s = {};
                multiply_key<T, HeadDim>(s, pair, q, lane);
                if (page >= whole || again || running.large) {  // one branch for all that is rare
                    mask_future<kTiles>(s, own.first + past + lane % 4 * 2 - page * kBlock - lane / 4);
                    if (again) running.raise(s, a.scale);
                    if (running.large) running.subtract_from(s);
                }
                const bool too_high = probabilities<T>(p, sum, s, running, a.scale);
                if (!too_high || again) break;
                again = true;
            }
            running.add(sum);
            multiply_value<T, HeadDim>(running.out, pair, p, lane);
        }
        stream.release(pair);
    }

    __syncthreads();  // all are done with the ring, which now takes the results
    const WarpQueries<Tile> again(a);
    if (again.valid <= 0) return;
    unsigned char *const room = shared + again.warp * (Tile::kWarpQueries * HeadDim * 2);
    store_results<T, HeadDim, kTiles>(static_cast<T *>(a.out) + again.row * HeadDim, a.lse + again.row, running,
                                      again.valid, a.scale, room, again.lane);
}

}  // namespace hsb::cuda

// Prefill attention over pages, dense and 2:4 in any mix, with mma.sp and all operands but the page in registers.
//
//   per page pair and warp     K page:  S^T [64 tokens x queries] = K Q^T      Q^T stays in registers
//                              softmax: P^T = 2^(S^T - reference)              in registers (softmax.cuh)
//                              V page:  O^T [head_dim x queries] += V^T P^T    O^T stays in registers
//
// A page is the operand A, read from shared memory by every warp; a warp's queries are the cols of both products, in
// tiles of 8. The more tiles, the fewer reads per product, and the more registers: plan.h draws how the work is
// cut.
//
// A page is worked on in halves of 32 tokens, so that the product of the next half with K and the softmax of this one
// can stand between each other's instructions:
//
//   K, half   |  0  |  1        |  2        |  3
//   softmax   |     |  0        |  1        |  2
//   V, half   |     |        0  |        1  |        2
#pragma once

#include "cuda/launch.h"
#include "cuda/prefill/prefill.h"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/queries.cuh"
#include "launch.h"
#include "pages.cuh"
#include "product.cuh"
#include "sight.cuh"
#include "softmax.cuh"

namespace hsb::cuda::prefill::sm80 {

constexpr int kReadAhead = 1;  // tiles of A that are read before their use

// Where ptxas has no register to spare, a lane is asked for anew rather than kept: before sm_90, and where there is a
// reserve. Which way it is asked for decides only whether ptxas spills.
template <class T>
__device__ __forceinline__ int lane_again([[maybe_unused]] int lane) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return ptx::thread_index() % 32;
#else
    return Element<T>::kHasReserve ? ptx::lane() : lane;
#endif
}

// The start of shared memory: the references of each warp's queries, once they are large.
template <int Tiles>
__device__ __forceinline__ float *warp_references() {
    extern __shared__ __align__(RingShape::kAlign) unsigned char shared[];
    return reinterpret_cast<float *>(shared) + ptx::thread_index() / 32 * (Tiles * 8);
}

template <int Tiles>
__device__ __forceinline__ void clear(Scores<Tiles> &s) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int strip = 0; strip < 2; ++strip)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[tile][strip][i] = 0.0f;
}

// out [queries, head_dim] and lse [queries] of a warp, as far as they exist. `room`: shared memory of its own,
// Tiles * 8 * head_dim * 2 bytes, used as panels of 64 dims, swizzled as a dense page's are.
template <class T, int HeadDim, class Tile, int Tiles>
__device__ __forceinline__ void store_results(const Arguments &a, const WarpQueries<Tile> &own,
                                              Running<HeadDim, Tiles> &running, unsigned char *room) {
    constexpr float kLn2 = 0.693147181f;
    const int lane = own.lane, valid = own.valid;
    T *const out = static_cast<T *>(a.out) + own.row * HeadDim;
    float *const lse = a.lse + own.row;
    const std::int64_t shift_at = static_cast<std::int64_t>(own.head / a.group) * HeadDim;

    // What K's shift took from the scores of query tile * 8 + lane / 4. The queries are read again: to keep them, or this,
    // while there are pages would take registers.
    float taken[Tiles] = {};
    if (a.key_shift) {
#pragma unroll
        for (int i = 0; i < HeadDim / 32; ++i) {
            const int chunk = i * 4 + lane % 4;
            float4 shift[2];
            load_chunk(shift, a.key_shift + shift_at, chunk);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const int query = min(tile * 8 + lane / 4, valid - 1);
                const uint4 x = __ldg(static_cast<const uint4 *>(a.q) + (own.row + query) * (HeadDim / 8) + chunk);
                taken[tile] += chunk_times<T>(x, shift);
            }
        }
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            for (int lanes = 1; lanes < 4; lanes *= 2) taken[tile] += __shfl_xor_sync(~0u, taken[tile], lanes);
            taken[tile] *= a.given_scale;
        }
    }
    float value_shift[HeadDim / kStripRows][2] = {};
    if (a.value_shift) {
#pragma unroll
        for (int strip = 0; strip < HeadDim / kStripRows; ++strip)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                value_shift[strip][half] = __ldg(a.value_shift + shift_at + strip * kStripRows + half * 8 + lane / 4);
    }

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
            const float offset = running.offset_log2(tile, i, a.scale, warp_references<Tiles>(), lane);
            const float of_query = a.key_shift ? __shfl_sync(~0u, taken[tile], query % 8 * 4) : 0.0f;
            if (lane / 4 == 0 && query < valid) lse[query] = offset * kLn2 + logf(sum) + of_query;
        }
#pragma unroll
        for (int strip = 0; strip < HeadDim / kStripRows; ++strip)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float low = running.out[tile][strip][half * 2] * inverse[0] + value_shift[strip][half];
                const float high = running.out[tile][strip][half * 2 + 1] * inverse[1] + value_shift[strip][half];
                const std::uint32_t pair = ptx::movmatrix_trans(Element<T>::pack(within<T>(low), within<T>(high)));
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

// s = K q of half of the pair's K page.
template <class T, int HeadDim, int Half, int Tiles, class Stream, class Between>
__device__ __forceinline__ void multiply_key(Scores<Tiles> &s, const Stream &stream, const PagePair &pair,
                                             const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], int lane,
                                             Between &&between) {
    using Shape = KeyPage<HeadDim>;
    clear(s);
    const std::uint32_t page = stream.key_address(pair);
    interleave<T, Shape, Half * 2, 0, kReadAhead>(pair.key_kind(), s, page, q, lane, between);
}

// out += V^T p of half of the pair's V page.
template <class T, int HeadDim, int Half, int Tiles, class Stream>
__device__ __forceinline__ void multiply_value(float (&out)[Tiles][HeadDim / kStripRows][4], const Stream &stream,
                                               const PagePair &pair, const Probabilities<Tiles> &p, int lane) {
    using Shape = ValuePage<HeadDim>;
    const std::uint32_t page = stream.value_address(pair);
    interleave<T, Shape, 0, Half, kReadAhead>(pair.value_kind(), out, page, p, lane, NothingBetween());
}

// Half a page: the softmax of its scores and their product with V, while K of the next half is on its way.
template <class T, int HeadDim, int Half, class Tile, class Sight, class Stream, int Tiles>
__device__ __forceinline__ void attend_half(Running<HeadDim, Tiles> &running, const Stream &stream, Scores<Tiles> &s,
                                            Scores<Tiles> &next, const PagePair &pair, const PagePair &next_pair,
                                            const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const Sight &sight,
                                            typename Sight::Page seen, std::int32_t page, const Arguments &a,
                                            int lane_kept) {
    const int lane = lane_again<T>(lane_kept);
    const auto prepare = [&](bool raise) {
        mask_future<Tiles>(s, sight.template ahead<Half>(a, page, lane));
        const float reserve = Element<T>::kHasReserve ? a.reserve : 0.0f,
                    margin = Element<T>::kHasReserve ? a.margin : kMargin;
        if (raise) running.raise(s, a.scale, a.inverse_scale, reserve, margin, warp_references<Tiles>(), lane);
        if (running.large) running.subtract_from(s, warp_references<Tiles>(), lane);
    };
    Probabilities<Tiles> p;
    if (sight.is_edge(seen, page) || running.large) prepare(false);
    SoftmaxSteps<T, Tiles> softmax(p, s, running, a.scale, a.largest);
    multiply_key<T, HeadDim, 1 - Half>(next, stream, next_pair, q, lane, softmax);
    if (softmax.too_high()) {
        multiply_key<T, HeadDim, Half>(s, stream, pair, q, lane, NothingBetween());
        prepare(true);
        SoftmaxSteps<T, Tiles> again(p, s, running, a.scale, a.largest);
        again(0, 1);
        running.add(again.sum);
    } else {
        running.add(softmax.sum);
    }
    multiply_value<T, HeadDim, Half>(running.out, stream, pair, p, lane);
}

template <class T, int HeadDim, class Tile, bool LooksUp>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kCtas)
    prefill_sm80_kernel(const __grid_constant__ Arguments a) {
    constexpr int kTiles = Tile::kTiles;
    extern __shared__ __align__(RingShape::kAlign) unsigned char shared[];
    const WarpQueries<Tile> own(a);
    const int lane = own.lane;

    const Sight<Tile, LooksUp> sight(a, own);
    if (LooksUp && sight.pages() == 0) return;  // its queries see nothing, or there are none (blind.h)
    PageStream<HeadDim, Tile::kWarps, Sight<Tile, LooksUp>> stream(
        a.k, a.v, a.ring, ptx::shared_address(shared) + sizeof(WarpReferences<Tile>),
        own.head / a.group * a.positions.stored, sight);
    std::uint32_t q[kTiles][HeadDim / kStepCols][4];
    load_queries<T, HeadDim, kTiles>(q, static_cast<const T *>(a.q) + own.row * HeadDim, sight.valid(own), a.flip,
                                     a.mirror, lane);
    Running<HeadDim, kTiles> running;
    running.clear();

    PagePair pair = stream.wait(0);
    Scores<kTiles> low, high;  // of the two halves of a page
    multiply_key<T, HeadDim, 0>(low, stream, pair, q, lane, NothingBetween());
    auto seen = sight.at(0);
#pragma unroll 1
    for (std::int32_t page = 0; sight.is_seen(seen, page); seen = sight.at(++page)) {
        attend_half<T, HeadDim, 0, Tile>(running, stream, low, high, pair, pair, q, sight, seen, page, a, lane);
        const PagePair next = sight.has_next(seen, page) ? stream.wait(page + 1) : pair;
        attend_half<T, HeadDim, 1, Tile>(running, stream, high, low, pair, next, q, sight, seen, page, a, lane);
        stream.release(pair);
        pair = next;
    }
#pragma unroll 1
    for (std::int32_t page = sight.end() + 1; page < sight.pages(); ++page) {  // the CTA's others go on
        stream.release(pair);
        pair = stream.wait(page);
    }

    __syncthreads();  // all are done with the ring, which now takes the results
    WarpQueries<Tile> again(a);
    again.valid = sight.valid(again);
    if (again.valid <= 0) return;
    unsigned char *const results =
        shared + sizeof(WarpReferences<Tile>) + again.warp * (Tile::kWarpQueries * HeadDim * 2);
    store_results<T, HeadDim>(a, again, running, results);
}

template <class T, int HeadDim, bool LooksUp>
void launch_prefill(const hsb_prefill_params &p, Arguments a, const Device &device) {
    const int key_bytes = largest_page_bytes(p.k, HeadDim), value_bytes = largest_page_bytes(p.v, HeadDim);
    constexpr int kReferences = sizeof(WarpReferences<Tile>);
    // Sight lies before the rest, which keeps its alignment.
    constexpr int kSights = LooksUp ? RingShape::kAlign : 0;
    static_assert(Tile::kWarps * 32 <= RingShape::kAlign, "all warps' sights");
    static_assert(kReferences % RingShape::kAlign == 0, "the ring keeps its alignment");
    const int room = device.shared_bytes - Tile::kCtas * (kReferences + kSights);
    a.ring = choose_ring(key_bytes, value_bytes, room, Tile::kCtas);
    if (a.ring.stages < RingShape::kMin) a.ring = choose_ring(key_bytes, value_bytes, room, 1);
    HSB_CHECK(a.ring.stages >= RingShape::kMin, "three page pairs do not fit into shared memory");
    a.tiles = tiles_per_head(p, Tile::kQueries);
    const int results = Tile::kQueries * HeadDim * 2;
    const int shared_bytes = kReferences + (a.ring.shared_bytes() > results ? a.ring.shared_bytes() : results);
    launch(prefill_sm80_kernel<T, HeadDim, Tile, LooksUp>, static_cast<unsigned>(a.tiles * a.heads), Tile::kThreads,
           shared_bytes, p.stream, a);
}

}  // namespace hsb::cuda::prefill::sm80

// Online softmax of one warp over S^T tiles, and the warp's running result.
//
// S^T is 4 strips of 16 rows, tokens in the order of K's pages, x Tiles * 8 heads in C fragments (ptx/mma.cuh): a thread
// holds rows i and i + 8 of each strip, heads 2t and 2t + 1. The output's fragments have the same heads in the same threads,
// so that rescaling needs no exchange, unless V's groups run along head_dim (value_axis.cuh).
//
// The reference that scores are taken relative to is a maximum, but a lazy one: it is raised only when a score exceeds
// it by V's Stored::kMargin (in powers of 2), which after the first pages hardly happens. Probabilities then reach 2^kMargin at
// most, less the reserve: well within fp16.
#pragma once

#include "cuda/block_kinds.cuh"
#include "cuda/fragments.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/reserve.cuh"
#include "cuda/softmax_margin.h"
#include "value_axis.cuh"

namespace hsb::cuda::decode {

template <int HeadDim, int Tiles, class Axis>
struct Running {
    static constexpr int kStrips = Axis::template Page<HeadDim>::kStrips, kOutTiles = Axis::tiles(Tiles);

    float out[kOutTiles][kStrips][4];  // C fragments of O^T, as Axis has them, not yet divided by the sum
    float max[Tiles][2];               // reference of heads 2t, 2t + 1; the same in all lanes of one t
    float limit[Tiles][2];             // max + the margin, in units of the scores
    float sum[Tiles][2];               // over this thread's tokens only

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < kOutTiles; ++tile)
#pragma unroll
            for (int strip = 0; strip < kStrips; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[tile][strip][i] = 0.0f;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int head = 0; head < 2; ++head) {
                max[tile][head] = limit[tile][head] = negative_infinity();
                sum[tile][head] = 0.0f;
            }
    }

    // visit(query head, head dim, output) for all of this thread's.
    template <class Visit>
    __device__ __forceinline__ void for_each_output(int lane, Visit &&visit) const {
#pragma unroll
        for (int tile = 0; tile < kOutTiles; ++tile)
#pragma unroll
            for (int strip = 0; strip < kStrips; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    visit(Axis::head(tile, i, lane), Axis::dim(strip, i, lane), out[tile][strip][i]);
    }

    // `highest`: of this thread's new scores. log2_scale turns scores into exponents of 2; margin is in scores.
    __device__ __forceinline__ void raise(const float (&highest)[Tiles][2], float log2_scale, float margin) {
        float factors[Tiles][2];
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int head = 0; head < 2; ++head) {
                const float higher = fmaxf(max[tile][head], max_over_rows(highest[tile][head]));
                // From -inf (nothing seen yet) the factor is 0. The difference first: it is exact where it matters.
                const float factor = ptx::exp2_approx((max[tile][head] - higher) * log2_scale);
                max[tile][head] = higher;
                limit[tile][head] = __fadd_rd(higher, margin);  // where scores are so large that it rounds: down
                sum[tile][head] *= factor;
                factors[tile][head] = factor;
            }
#pragma unroll
        for (int tile = 0; tile < kOutTiles; ++tile) {
            float of[2];
            Axis::factors_of(of, factors, tile);
#pragma unroll
            for (int strip = 0; strip < kStrips; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[tile][strip][i] *= of[i % 2];
        }
    }
};

// Scores past the end of the sequence, of which `valid` tokens lie in this block, to -inf.
template <class Elements, int Tiles>
__device__ __forceinline__ void mask_tail(const Elements &elements, float (&s)[Tiles][4][4], int valid, int lane) {
#pragma unroll
    for (int strip = 0; strip < 4; ++strip)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (elements.token_of_row(strip * 16 + lane / 4 + i / 2 * 8) >= valid)
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile) s[tile][strip][i] = negative_infinity();
}

// Scores to probabilities: words of two of them, those of query heads 2t and 2t + 1, of rows i and i + 8 of each strip in turn;
// or, of groups along tokens, the same of the transposed tile. T: of q.
template <class T, class Elements, int HeadDim, int Tiles, class Axis>
__device__ __forceinline__ void softmax(const Elements &elements, std::uint32_t (&p)[Tiles][8], float (&s)[Tiles][4][4],
                                        Running<HeadDim, Tiles, Axis> &running, float log2_scale, float margin,
                                        float reserve) {
    constexpr bool kHasReserve = Elements::template kHasReserve<T>;
    float highest[Tiles][2];
    bool rises = false;
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int head = 0; head < 2; ++head) {
            highest[tile][head] = fmaxf(s[tile][0][head], s[tile][0][head + 2]);
#pragma unroll
            for (int strip = 1; strip < 4; ++strip)
                highest[tile][head] = fmaxf(highest[tile][head], fmaxf(s[tile][strip][head], s[tile][strip][head + 2]));
            rises |= highest[tile][head] > running.limit[tile][head];
        }
    if (__any_sync(~0u, rises)) running.raise(highest, log2_scale, margin);

#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int strip = 0; strip < 4; ++strip) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float above = s[tile][strip][i] - running.max[tile][i % 2];
                const float probability = ptx::exp2_approx(exponent<T, kHasReserve>(above, log2_scale, reserve));
                running.sum[tile][i % 2] += probability;
                s[tile][strip][i] = probability;
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const std::uint32_t word =
                    elements.template pack<T>(s[tile][strip][half * 2], s[tile][strip][half * 2 + 1]);
                p[tile][strip * 2 + half] = Axis::kTransposes ? ptx::movmatrix_trans(word) : word;
            }
        }
}

}  // namespace hsb::cuda::decode

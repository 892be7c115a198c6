// Online softmax of one warp over S^T tiles, and the warp's running result.
//
// S^T is 4 strips of 16 rows, tokens in the order of K's pages, x Tiles * 8 heads in C fragments (ptx/mma.cuh): a thread
// holds rows i and i + 8 of each strip, heads 2t and 2t + 1. The output's fragments have the same heads in the same threads, so that rescaling
// needs no exchange.
//
// The reference that scores are taken relative to is a maximum, but a lazy one: it is raised only when a score exceeds
// it by kMargin (in powers of 2), which after the first pages hardly happens. Probabilities then reach 2^kMargin at most,
// less the reserve: well within fp16.
#pragma once

#include "cuda/block_kinds.cuh"
#include "cuda/fragments.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/place.cuh"
#include "cuda/reserve.cuh"
#include "cuda/softmax_margin.h"

namespace hsb::cuda::decode {

constexpr float kMargin = kDecodeMargin;

template <int HeadDim, int Tiles>
struct Running {
    static constexpr int kStrips = HeadDim / kStripRows;

    float out[Tiles][kStrips][4];  // C fragments of O^T, not yet divided by the sum
    float max[Tiles][2];           // reference of heads 2t, 2t + 1; the same in all lanes of one t
    float limit[Tiles][2];         // max + kMargin, in units of the scores
    float sum[Tiles][2];           // over this thread's tokens only

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int strip = 0; strip < kStrips; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[tile][strip][i] = 0.0f;
#pragma unroll
            for (int head = 0; head < 2; ++head) {
                max[tile][head] = limit[tile][head] = negative_infinity();
                sum[tile][head] = 0.0f;
            }
        }
    }

    // `highest`: of this thread's new scores. log2_scale turns scores into exponents of 2; margin is kMargin in scores.
    __device__ __forceinline__ void raise(const float (&highest)[Tiles][2], float log2_scale, float margin) {
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
#pragma unroll
                for (int strip = 0; strip < kStrips; ++strip) {
                    out[tile][strip][head] *= factor;
                    out[tile][strip][head + 2] *= factor;
                }
            }
    }
};

// Scores past the end of the sequence, of which `valid` tokens lie in this block, to -inf.
template <class Stored, int Tiles>
__device__ __forceinline__ void mask_tail(float (&s)[Tiles][4][4], int valid, int lane) {
#pragma unroll
    for (int strip = 0; strip < 4; ++strip)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (Stored::token_of_row(strip * 16 + lane / 4 + i / 2 * 8) >= valid)
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile) s[tile][strip][i] = negative_infinity();
}

// Scores to probabilities, as B fragments [64 tokens x 8 heads] for the product with V^T: p[tile][step of 32 tokens].
// A C fragment's tile of 8 rows x 8 heads, transposed, is exactly a B register, where rows are tokens in order; and where they
// are not (kinds/fp8_page.cuh), neighbouring threads put them in order. T: of P.
template <class T, class Stored, int HeadDim, int Tiles>
__device__ __forceinline__ void softmax(std::uint32_t (&p)[Tiles][2][4], float (&s)[Tiles][4][4],
                                        Running<HeadDim, Tiles> &running, float log2_scale, float margin,
                                        float reserve) {
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
                const float probability = ptx::exp2_approx(exponent<T>(above, log2_scale, reserve));
                running.sum[tile][i % 2] += probability;
                s[tile][strip][i] = probability;
            }
            std::uint32_t *const b = p[tile][strip / 2];
            std::uint32_t rows[2];
#pragma unroll
            for (int half = 0; half < 2; ++half)
                rows[half] =
                    ptx::movmatrix_trans(Element<T>::pack(s[tile][strip][half * 2], s[tile][strip][half * 2 + 1]));
            if constexpr (Stored::token_of_row(1) == 1)
                b[strip % 2 * 2] = rows[0], b[strip % 2 * 2 + 1] = rows[1];
            else
                fp8_tokens(b[strip % 2], b[strip % 2 + 2], rows[0], rows[1], ptx::lane());
        }
}

}  // namespace hsb::cuda::decode

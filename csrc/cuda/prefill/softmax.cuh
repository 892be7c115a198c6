// Online softmax of one warp over S^T, in registers, and the warp's running result: each warp has its queries to itself,
// so nothing is exchanged with others.
//
// The reference that scores are taken relative to is a maximum, but a lazy one: it is raised only when a score exceeds it
// by kPrefillSlack (in powers of 2), which after the first pages hardly happens. Probabilities then reach 2^kPrefillSlack.
//
// Exponents are computed as s * scale - offset with offset = reference * scale, one FMA. The rounding of offset is the same
// for all tokens and drops out of the result, but it must stay small beside 1, or 2^exponent overflows. Once a reference
// passes kLargeOffset the warp subtracts first, s - reference, which is exact where it matters, and the offset is 0.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"

namespace hsb::cuda {

constexpr float kPrefillSlack = 8.0f;
constexpr float kLargeOffset = 1 << 20;  // a float's step is 2^-4 there

template <int HeadDim, int Tiles>
struct PrefillRunning {
    static constexpr int kStrips = HeadDim / kStripRows;

    float out[Tiles][kStrips][4];  // C fragments of O^T, not yet divided by the sum
    float reference[Tiles][2];     // of queries 2t, 2t + 1, in units of S; the same in all lanes of one t
    float sum[Tiles][2];           // over this thread's tokens only
    bool large;                    // the same in all lanes: subtract first

    __device__ __forceinline__ void clear() {
        large = false;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int strip = 0; strip < kStrips; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) out[tile][strip][i] = 0.0f;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                reference[tile][i] = negative_infinity();
                sum[tile][i] = 0.0f;
            }
        }
    }

    // What the sums and outputs of a query are relative to, in powers of 2. Rounded here, not within an FMA: every use
    // must mean the same number.
    __device__ __forceinline__ float offset(int tile, int i, float scale) const {
        return __fmul_rn(reference[tile][i], scale);
    }

    // `highest`: of this thread's new scores. Each query has seen a token by now: the first page holds token 0.
    __device__ __forceinline__ void raise(const float (&highest)[Tiles][2], float scale) {
        float higher[Tiles][2];
        bool will_be_large = large;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                higher[tile][i] = fmaxf(reference[tile][i], max_over_rows(highest[tile][i]));
                will_be_large |= fabsf(higher[tile][i] * scale) > kLargeOffset;
            }
        will_be_large = __any_sync(~0u, will_be_large);
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                // From -inf (nothing seen yet) the factor is 0.
                const float fall = large           ? (reference[tile][i] - higher[tile][i]) * scale
                                   : will_be_large ? fmaf(-higher[tile][i], scale, offset(tile, i, scale))
                                                   : offset(tile, i, scale) - __fmul_rn(higher[tile][i], scale);
                const float factor = ptx::exp2_approx(fall);
                reference[tile][i] = higher[tile][i];
                sum[tile][i] *= factor;
#pragma unroll
                for (int strip = 0; strip < kStrips; ++strip) {
                    out[tile][strip][i] *= factor;
                    out[tile][strip][i + 2] *= factor;
                }
            }
        large = will_be_large;
    }
};

// Scores of tokens that a query may not see to -inf. `ahead`: this thread's first query's last token less the first
// token of its C fragments; the others follow from the fragment's layout.
template <int Tiles>
__device__ __forceinline__ void mask_future(float (&s)[Tiles][4][4], int ahead) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int strip = 0; strip < 4; ++strip)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (strip * kStripRows + i / 2 * 8 > ahead + tile * 8 + i % 2) s[tile][strip][i] = negative_infinity();
}

// Scores to probabilities, as B fragments [64 tokens x 8 queries] for the product with V^T: p[tile][step of 32 tokens].
// A C fragment's tile of 8 tokens x 8 queries, transposed, is exactly a B register. `slack`: kPrefillSlack in units of S.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void softmax(std::uint32_t (&p)[Tiles][2][4], float (&s)[Tiles][4][4],
                                        PrefillRunning<HeadDim, Tiles> &running, float scale, float slack) {
    float highest[Tiles][2];
    bool rises = false;
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            highest[tile][i] = fmaxf(s[tile][0][i], s[tile][0][i + 2]);
#pragma unroll
            for (int strip = 1; strip < 4; ++strip)
                highest[tile][i] = fmaxf(highest[tile][i], fmaxf(s[tile][strip][i], s[tile][strip][i + 2]));
            rises |= highest[tile][i] - running.reference[tile][i] > slack;
        }
    if (__any_sync(~0u, rises)) running.raise(highest, scale);

    if (running.large)
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int strip = 0; strip < 4; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[tile][strip][i] -= running.reference[tile][i % 2];

#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
        float offset[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) offset[i] = running.large ? 0.0f : running.offset(tile, i, scale);
#pragma unroll
        for (int strip = 0; strip < 4; ++strip) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float probability = ptx::exp2_approx(fmaf(s[tile][strip][i], scale, -offset[i % 2]));
                running.sum[tile][i % 2] += probability;
                s[tile][strip][i] = probability;
            }
#pragma unroll
            for (int half = 0; half < 2; ++half)
                p[tile][strip / 2][strip % 2 * 2 + half] =
                    ptx::movmatrix_trans(pack(s[tile][strip][half * 2], s[tile][strip][half * 2 + 1], T()));
        }
    }
}

}  // namespace hsb::cuda

// Online softmax of a consumer warpgroup over S^T [64 tokens x 96 queries] in wgmma's C registers (ptx/wgmma.cuh).
//
// A thread holds tokens i and i + 8 of its warp's 16, of 24 queries (columns): 8 j + 2 t and the one after it, for each
// of 12 fragments j. A query's tokens are spread over 8 lanes and 4 warps, so that an exact running maximum would cost
// a reduction through shared memory for every page. The reference that scores are taken relative to is therefore lazy:
//
//   - Probabilities 2^(score - reference) are stored as they come. One of 2 or more has bit 14 set in its 16 bits, in
//     fp16 and in bf16 alike, an infinite one too: all of a thread's, or-ed, tell whether a score passed its reference
//     by 1.
//   - If one did, which the group learns at the barrier that publishes the probabilities, the page is done again: its
//     scores recomputed, its column maxima found, references raised to kMargin above them, O and the sums scaled.
//
// The first page meets references of minus infinity, as it were, and is always done again. Weights below
// 2^-(25 - kMargin) of a query's largest one so far count as 0 in fp16.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "sm90_plan.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::sm90 {

using ptx::WgmmaSums;

constexpr float kMargin = 4.0f;   // powers of 2 by which a raised reference exceeds the maximum
constexpr float kNothingSeen = 1e30f;
// Scores so large, in powers of 2, that rounding score * scale and reference apart could cost more than the margin.
// From the first of them on a group takes the maximum of a column from its scores first. Only the path that raises does
// so; to be sent there by every page, the group meets pages with a scale of nearly 0 and a reference that makes every
// probability 4.
constexpr float kLarge = 1 << 20;
constexpr float kShiftedScale = 1e-38f;   // not 0, for masked scores are -inf
constexpr float kShiftedReference = 2.0f;
constexpr std::uint32_t kTwoOrMore = 0x40004000u;

constexpr int kScores = kGroupQueries / 2;   // of a thread
constexpr int kColumns = kGroupQueries / 4;
__device__ __forceinline__ constexpr int column_of(int score) { return score / 4 * 2 + score % 2; }
// Of a thread's column, among the group's queries.
__device__ __forceinline__ int query_of(int column, int lane) { return column / 2 * 8 + lane % 4 * 2 + column % 2; }

// Scores of tokens that a query does not see, to -inf. `seen`: tokens, counted from this thread's first, that its first
// query sees beyond that one; each later query sees one more.
__device__ __forceinline__ void mask_future(WgmmaSums &s, int seen) {
#pragma unroll
    for (int i = 0; i < kScores; ++i)
        if (seen + i / 4 * 8 + i % 2 < i % 4 / 2 * 8) s[i] = negative_infinity();
}

struct Softmax {
    float reference[kColumns];  // its negative, in powers of 2; the same in all threads of a column
    float sum[kColumns];        // over this thread's tokens

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            reference[c] = kNothingSeen;
            sum[c] = 0.0f;
        }
    }

    __device__ __forceinline__ float power(float score, int i, float log2_scale) const {
        return ptx::exp2_approx(fmaf(score, log2_scale, reference[column_of(i)]));
    }

    // Probabilities of a page, added to the sums and stored as the B tile [queries][64 tokens] of the product with
    // V^T; `to`: where this lane stores. Returns whether one is 2 or more.
    //
    // Written as a pipeline, for the compiler would put all exponentials first and all stores last: one pair's
    // exponentials come with the addition and packing of the pair kAhead before.
    template <class T>
    __device__ __forceinline__ bool store_probabilities(WgmmaSums &s, std::uint32_t to, float log2_scale,
                                                        std::uint32_t never) {
        constexpr int kPairs = kScores / 2, kAhead = 6;
        if (never) return true;  // it is 0; the branch keeps what comes before from being moved in here, and spilling
        std::uint32_t packed[4], all = 0;
#pragma unroll
        for (int pair = -kAhead; pair < kPairs; ++pair) {
            if (pair + kAhead < kPairs)
#pragma unroll
                for (int i = 2 * (pair + kAhead); i < 2 * (pair + kAhead) + 2; ++i) s[i] = power(s[i], i, log2_scale);
            if (pair < 0) continue;
            sum[column_of(2 * pair)] += s[2 * pair];
            sum[column_of(2 * pair + 1)] += s[2 * pair + 1];
            packed[pair % 4] = pack(s[2 * pair], s[2 * pair + 1], T());
            all |= packed[pair % 4];
            if (pair % 4 == 3) ptx::stmatrix_x4_trans(to + pair / 4 * (16 * 128), packed);
        }
        return all & kTwoOrMore;
    }
};

}  // namespace hsb::cuda::sm90

#endif

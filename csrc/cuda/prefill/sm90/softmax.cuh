// Online softmax of a consumer warpgroup over S^T [64 tokens x queries] in wgmma's C registers (ptx/wgmma.cuh).
//
// A thread holds tokens i and i + 8 of its warp's 16, of a quarter of the queries (columns): 8 j + 2 t and the one
// after it, for each fragment j. A query's tokens are spread over 8 lanes and 4 warps, so that an exact running maximum
// would cost a reduction through shared memory for every page. The reference that scores are taken relative to is
// therefore lazy:
//
//   - Probabilities 2^(score - reference) are stored as they come, in bf16 2^reserve lower. cuda/reserve.cuh tells
//     whether a score passed its reference by 1.
//   - If one did, which the group learns at the barrier that publishes the probabilities, the page is done again: its
//     scores recomputed, its column maxima found, references raised to a margin above them, O and the sums scaled.
//
// The first page's maxima are found before its probabilities, so that it is not done again. Weights below
// 2^-(25 - kMargin) of a query's largest one so far count as 0 in fp16.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/fragments.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/order.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/reserve.cuh"
#include "cuda/softmax_margin.h"
#include "plan.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90 {

// Powers of 2 by which a raised reference exceeds the maximum; in bf16, more by the reserve.
constexpr float kMargin = kPrefillSm90Margin;

// Scores may be so large, in powers of 2, that rounding score * scale and the reference apart could cost more than the
// margin; References and PackedReferences say from where on. From the first of them on a group takes the maximum of a
// column from its scores first. Only the path that raises does so; to be sent there by every page, the group meets
// pages with a scale of nearly 0 and a reference that makes every probability 4.
constexpr float kShiftedScale = 1e-38f;  // not 0, for masked scores are -inf
constexpr float kShiftedReference = 2.0f;

__device__ __forceinline__ constexpr int column_of(int score) { return score / 4 * 2 + score % 2; }
// Of a thread's column, among the group's queries.
__device__ __forceinline__ int query_of(int column, int lane) { return column / 2 * 8 + lane % 4 * 2 + column % 2; }

// What a thread's columns are taken relative to: the negative reference, in powers of 2; the same in all threads of a
// column. At first infinite: a page that meets it so raises it.
template <int Columns>
class References {
public:
    static constexpr float kLarge = 1 << 20;

    __device__ __forceinline__ float at(int column) const { return value_[column]; }
    __device__ __forceinline__ void set(int column, float x) { value_[column] = x; }
    // The nearest value, not above x, that can be kept.
    static __device__ __forceinline__ float rounded(float x) { return x; }

private:
    float value_[Columns];
};

// The same in half the registers, which three groups are short of.
template <int Columns>
class PackedReferences {
public:
    static constexpr float kLarge = 1 << 10;  // a step of fp16 is 1/2 there

    __device__ __forceinline__ float at(int column) const {
        const __half2 pair = pair_[column / 2];
        return column % 2 ? __high2float(pair) : __low2float(pair);
    }
    __device__ __forceinline__ void set(int column, float x) {
        (column % 2 ? pair_[column / 2].y : pair_[column / 2].x) = __float2half_rd(x);
    }
    static __device__ __forceinline__ float rounded(float x) { return __half2float(__float2half_rd(x)); }

private:
    __half2 pair_[Columns / 2];
};

// Scores of tokens that a query does not see, to -inf. `seen`: tokens, counted from this thread's first, that its first
// query sees beyond that one; each later query sees one more.
template <int Scores>
__device__ __forceinline__ void mask_future(float (&s)[Scores], int seen) {
#pragma unroll
    for (int i = 0; i < Scores; ++i)
        if (seen + i / 4 * 8 + i % 2 < i % 4 / 2 * 8) s[i] = negative_infinity();
}

template <class Cut>
struct Softmax {
    static constexpr int kScores = Cut::kGroupQueries / 2;  // of a thread
    static constexpr int kColumns = Cut::kGroupQueries / 4;
    using Scores = float[kScores];
    using References = std::conditional_t<Cut::kGroups == 2, sm90::References<kColumns>, PackedReferences<kColumns>>;

    References reference;
    float sum[kColumns];  // over this thread's tokens

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            reference.set(c, -negative_infinity());
            sum[c] = 0.0f;
        }
    }

    __device__ __forceinline__ float power(float score, int i, float log2_scale) const {
        return ptx::exp2_approx(fmaf(score, log2_scale, reference.at(column_of(i))));
    }

    // Probabilities of a page, added to the sums and stored as the B tile [queries][64 tokens] of the product with
    // V^T; `to`: where this lane stores. Returns whether one is 2 or more, in bf16 above `largest`.
    //
    // Written as a pipeline, a step's exponentials beside the additions, packing and stores of the step two before. The
    // compiler would undo it: with two groups, where nothing else hides what an exponential takes, it may not.
    template <class T>
    __device__ __forceinline__ bool store_probabilities(Scores &s, std::uint32_t to, float log2_scale,
                                                        std::uint32_t largest, std::uint32_t never) {
        constexpr int kPairs = kScores / 2, kStep = 2, kAhead = 2 * kStep;
        constexpr bool kKeepOrder = Cut::kGroups == 2;
        static_assert(kPairs % kStep == 0, "whole steps");
        // What comes before is not to be moved in here, and spill.
        if constexpr (kKeepOrder)
            ptx::keep_order(never);
        else if (never)
            return true;
        std::uint32_t packed[4], seen = 0;
#pragma unroll
        for (int step = -kAhead; step < kPairs; step += kStep) {
#pragma unroll
            for (int pair = step + kAhead; pair < step + kAhead + kStep && pair < kPairs; ++pair)
#pragma unroll
                for (int i = 2 * pair; i < 2 * pair + 2; ++i) s[i] = power(s[i], i, log2_scale);
#pragma unroll
            for (int pair = step; step >= 0 && pair < step + kStep; ++pair) {
                sum[column_of(2 * pair)] += s[2 * pair];
                sum[column_of(2 * pair + 1)] += s[2 * pair + 1];
                packed[pair % 4] = Element<T>::pack(s[2 * pair], s[2 * pair + 1]);
                seen = highest_of<T, true>(seen, packed[pair % 4]);
                if (pair % 4 == 3) ptx::stmatrix_x4_trans(to + pair / 4 * (16 * 128), packed);
                if (pair == kPairs - 1 && kPairs % 4 == 2)
                    ptx::stmatrix_x2_trans(to + pair / 4 * (16 * 128), packed[0], packed[1]);
            }
            if (kKeepOrder) ptx::keep_order(never);
        }
        return too_high<T, true>(seen, largest);
    }
};

}  // namespace hsb::cuda::prefill::sm90

#endif

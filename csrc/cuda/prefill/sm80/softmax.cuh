// Online softmax of one warp over S^T, in registers, and the warp's running result: each warp has its queries to
// itself, so nothing is exchanged with others.
//
// The reference that scores are taken relative to is a bound, and raised late: probabilities are computed first, and
// only if one reaches 2 is the page done again, with a reference kMargin (in powers of 2) above the highest score so
// far. After the first pages that hardly happens. No maximum is needed until then: cuda/reserve.cuh has the check. In
// bf16 all of this is 2^reserve lower.
//
// Exponents are computed as s * scale - offset with offset = reference * scale, one FMA. The rounding of offset is the
// same for all tokens and drops out of the result, but it must stay small beside 1, or 2^exponent overflows. Once an
// offset passes kLargeOffset the warp subtracts first, s - reference, which is exact where it matters, and only the
// reserve remains for the offset.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/reserve.cuh"
#include "cuda/softmax_margin.h"
#include "cuda/unrolled.cuh"

namespace hsb::cuda::prefill::sm80 {

// Scores may rise by 2^(kMargin + 1) before a page is done again; and 16-bit floats hold what is 2^(24 - kMargin)
// below the highest.
constexpr float kMargin = kPrefillSm80Margin;
constexpr float kLargeOffset = 1 << 20;  // a float's step is 2^-4 there

// S^T of half a page: [tile of 8 queries][strip of 16 tokens][C fragment].
template <int Tiles>
using Scores = float[Tiles][2][4];

// P^T of half a page, as B fragments [32 tokens x 8 queries]: [tile][step][register].
template <int Tiles>
using Probabilities = std::uint32_t[Tiles][1][4];

template <int HeadDim, int Tiles>
struct Running {
    static constexpr int kStrips = HeadDim / kStripRows;

    float out[Tiles][kStrips][4];  // C fragments of O^T, not yet divided by the sum
    float offset[Tiles][2];        // of queries 2t, 2t + 1, in powers of 2; the same in all lanes of one t
    float sum[Tiles][2];           // over this thread's tokens only
    bool large;                    // the same in all lanes: offsets are the reserve, references are subtracted from the
                                   // scores

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
                offset[tile][i] = negative_infinity();
                sum[tile][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void add(const float (&more)[Tiles][2]) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) sum[tile][i] += more[tile][i];
    }

    // What the sums and outputs of a query are relative to, in powers of 2.
    __device__ __forceinline__ float offset_log2(int tile, int i, float scale, const float *references,
                                                 int lane) const {
        return large ? fmaf(references[tile * 8 + lane % 4 * 2 + i], scale, offset[tile][i]) : offset[tile][i];
    }

    // Raises the references to kMargin above the scores. Each query has seen a token by now: the first page holds
    // token 0. `reserve`: 0 where T has none; `margin`: kMargin and the reserve.
    __device__ __forceinline__ void raise(const Scores<Tiles> &s, float scale, float inverse_scale, float reserve,
                                          float margin, float *references, int lane) {
        float highest[Tiles][2];
        bool will_be_large = large;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float x = negative_infinity();
#pragma unroll
                for (int strip = 0; strip < 2; ++strip) x = fmaxf(x, fmaxf(s[tile][strip][i], s[tile][strip][i + 2]));
                highest[tile][i] = max_over_rows(x);
                will_be_large |= fabsf(highest[tile][i] * scale) > kLargeOffset;
            }
        will_be_large = __any_sync(~0u, will_be_large);
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float old = offset[tile][i];
                float fall;  // of what is relative to the old reference, in powers of 2; at first -inf
                if (!will_be_large) {
                    offset[tile][i] = fmaxf(old, __fadd_rn(__fmul_rn(highest[tile][i], scale), margin));
                    fall = old - offset[tile][i];
                } else {
                    float &reference = references[tile * 8 + lane % 4 * 2 + i];
                    const float before = large ? reference : (old - reserve) * inverse_scale;
                    const float after = fmaxf(before, highest[tile][i] + kMargin * inverse_scale);
                    fall = large ? (before - after) * scale : fmaf(-after, scale, old - reserve);
                    __syncwarp();
                    reference = after;  // the same in all lanes of one t
                    offset[tile][i] = reserve;
                }
                const float factor = ptx::exp2_approx(fall);
                sum[tile][i] *= factor;
#pragma unroll
                for (int strip = 0; strip < kStrips; ++strip) {
                    out[tile][strip][i] *= factor;
                    out[tile][strip][i + 2] *= factor;
                }
            }
        large = will_be_large;
        __syncwarp();
    }

    // Once a reference is large: takes it off the scores beforehand.
    __device__ __forceinline__ void subtract_from(Scores<Tiles> &s, const float *references, int lane) const {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int strip = 0; strip < 2; ++strip)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[tile][strip][i] -= references[tile * 8 + lane % 4 * 2 + i % 2];
    }
};

// Scores of tokens that a query may not see to -inf. `ahead`: this thread's first query's last token less the first
// token of its C fragments; the others follow from the fragment's layout.
template <int Tiles>
__device__ __forceinline__ void mask_future(Scores<Tiles> &s, int ahead) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int strip = 0; strip < 2; ++strip)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (strip * kStripRows + i / 2 * 8 > ahead + tile * 8 + i % 2) s[tile][strip][i] = negative_infinity();
}

// Scores to probabilities and, per query, their sum over this thread's tokens, in steps to be put between others'
// instructions: two scores of one row at a time, and each pair's exponentials a few steps before they are used. A C
// fragment's tile of 8 tokens x 8 queries, transposed, is exactly a B register.
template <class T, int Tiles>
class SoftmaxSteps {
public:
    template <int HeadDim>
    __device__ __forceinline__ SoftmaxSteps(Probabilities<Tiles> &p, Scores<Tiles> &s,
                                            const Running<HeadDim, Tiles> &running, float scale, std::uint32_t largest)
        : p_(p), s_(s), scale_(scale), largest_(largest) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                offset_[tile][i] = running.offset[tile][i];
                sum[tile][i] = 0.0f;
            }
    }

    // Part `part` of `of`.
    __device__ __forceinline__ void operator()(int part, int of) {
        unrolled<kPairs + kLead>([&](int step) {
            if (step * of / (kPairs + kLead) != part) return;
            if (step < kPairs) exponentials(step);
            if (step >= kLead) use(step - kLead);
        });
    }

    // Whether a probability is too high in any lane: then nothing here is of use.
    __device__ __forceinline__ bool too_high() const {
        return __any_sync(~0u, hsb::cuda::too_high<T, false>(seen_, largest_));
    }

    float sum[Tiles][2];

private:
    static constexpr int kPairs = Tiles * 4, kLead = 2;

    __device__ static constexpr int tile_of(int pair) { return pair / 2 % Tiles; }
    __device__ static constexpr int strip_of(int pair) { return pair / 2 / Tiles; }
    __device__ __forceinline__ float &score(int pair, int i) {
        return s_[tile_of(pair)][strip_of(pair)][pair % 2 * 2 + i];
    }
    __device__ __forceinline__ void exponentials(int pair) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            score(pair, i) = ptx::exp2_approx(fmaf(score(pair, i), scale_, -offset_[tile_of(pair)][i]));
    }
    __device__ __forceinline__ void use(int pair) {
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[tile_of(pair)][i] += score(pair, i);
        const std::uint32_t packed = Element<T>::pack(score(pair, 0), score(pair, 1));
        seen_ = highest_of<T, false>(seen_, packed);
        const int j = strip_of(pair) * 2 + pair % 2;
        p_[tile_of(pair)][0][j] = ptx::movmatrix_trans(packed);
    }

    Probabilities<Tiles> &p_;
    Scores<Tiles> &s_;
    float scale_;
    std::uint32_t largest_;
    float offset_[Tiles][2];
    std::uint32_t seen_ = 0;
};

}  // namespace hsb::cuda::prefill::sm80

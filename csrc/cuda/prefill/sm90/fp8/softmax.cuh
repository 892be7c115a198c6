// Online softmax of a consumer warpgroup over S^T, with the lazy references of ../softmax.cuh, for probabilities in e4m3.
//
// A thread's tokens i and i + 8 of a strip's rows are neighbours in their block (kinds/fp8_page.cuh), so that a pair of their
// e4m3 is one 16-bit element, which stmatrix transposes: P^T has a query's tokens in a row of bytes, as 8-bit products want it.
//
// e4m3 has 18 powers of 2 from its least number to its largest. A raised reference puts its maximum at 2^(kTop - headroom),
// and a probability from 2^kTop on raises references. So what is 2^-9 of a query's maximum is a normal number, what is below
// 2^-12 of it counts in the query's sum, but not in its output. The sums are of probabilities before they are rounded:
// rounding to nearest has no bias but where all of a row are alike, and to sum what was rounded would take it back to fp32.
//
// Exponentials are what most of a page's time goes by: the unit for them shares its queue with products and stores. So where
// all pages are 2:4, a third of the queries (kLinearTiles) take a line for 2^f within an octave, by three instructions that go
// elsewhere. It is off by -3.9 to +2.0 %, 1.8 % in the mean square, beside 2.7 % by rounding to e4m3. The sums are of the same
// numbers, so that only its differences move an output (docs/kernels/cuda-prefill-sm90.md). Dense pages gain nothing by it.
#pragma once

#include "cuda/prefill/sm90/softmax.cuh"
#include "cuda/ptx/e4m3.cuh"
#include "plan.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90::fp8 {

constexpr float kTop = 8.0f, kHeadroom = 5.0f;
constexpr float kMargin = kHeadroom - kTop;  // of a reference above the maximum, in powers of 2
// As ../softmax.cuh has them: every probability passes 2^kTop.
constexpr float kShiftedReference = kTop + 1.0f;

// mask_future() where a thread's rows are neighbouring tokens.
template <int Scores>
__device__ __forceinline__ void mask_future_pairs(float (&s)[Scores], int seen) {
#pragma unroll
    for (int i = 0; i < Scores; ++i)
        if (seen + i / 4 * 8 + i % 2 < i % 4 / 2) s[i] = negative_infinity();
}

// Bit i: tile i of 8 queries of a group's.
template <int HeadDim, int Pair>
constexpr unsigned kLinearTiles = 0;
template <>
inline constexpr unsigned kLinearTiles<128, pair_kind(Fp8Sparse24Kind::kKind, Fp8Sparse24Kind::kKind)> = 0b010010010;

template <class Cut, unsigned LinearTiles>
struct Softmax {
    static constexpr int kScores = Cut::kGroupQueries / 2;  // of a thread
    static constexpr int kColumns = Cut::kGroupQueries / 4;
    static constexpr int kTiles = Cut::kGroupQueries / 8;  // of 8 queries, 4 scores each
    static constexpr int kAhead = 2;
    using Scores = float[kScores];
    using References = std::conditional_t<Cut::kGroups == 2, sm90::References<kColumns>, PackedReferences<kColumns>>;

    References kept;      // as power() takes them
    float sum[kColumns];  // over this thread's tokens

    // A line's powers span 64 octaves, 2^-55.5 to 2^8.5, and a score has its share of them, 0 to 1. What is higher is too large
    // anyway; what is lower, as masked scores are, adds nothing to a sum that one number of 2^2 is in.
    static constexpr float kOctaves = 64.0f, kLowest = 55.5f;
    static HSB_HOST_DEVICE constexpr bool is_linear(int column) { return LinearTiles >> (column / 2) & 1; }
    __device__ __forceinline__ float reference(int c) const {
        return is_linear(c) ? fmaf(kept.at(c), kOctaves, -kLowest) : kept.at(c);
    }
    __device__ __forceinline__ void refer(int c, float x) { kept.set(c, is_linear(c) ? share(x) : x); }
    // The nearest value, not above x, that a column's reference can be.
    static __device__ __forceinline__ float rounded(int c, float x) {
        return is_linear(c) ? fmaf(References::rounded(share(x)), kOctaves, -kLowest) : References::rounded(x);
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            refer(c, -negative_infinity());
            sum[c] = 0.0f;
        }
    }
    __device__ __forceinline__ float power(float score, int i, float log2_scale) const {
        const int c = column_of(i);
        if (!is_linear(c)) return ptx::exp2_approx(fmaf(score, log2_scale, kept.at(c)));
        // 1 + share has the share as its fraction: times 64 it is exponent and fraction.
        constexpr std::uint32_t kBias = (127u << 23) - static_cast<std::uint32_t>(kLowest * (1 << 23));
        constexpr std::uint32_t kOne = 127u << 23, kMeanLow = 483000;  // log2 of 1.0407, in units of 2^-23
        const float at = __saturatef(fmaf(score, log2_scale * (1.0f / kOctaves), kept.at(c)));
        return __uint_as_float(__float_as_uint(at + 1.0f) * 64u + (kBias - kOne * 64u - kMeanLow));
    }
    // What a page adds to the sums of a tile's columns, by the same arithmetic.
    __device__ __forceinline__ float2 added(const float *s, int tile, float log2_scale) const {
        return {power(s[0], 4 * tile, log2_scale) + power(s[2], 4 * tile, log2_scale),
                power(s[1], 4 * tile + 1, log2_scale) + power(s[3], 4 * tile + 1, log2_scale)};
    }

    // A page's probabilities: adds them to the sums, and stores them as the B tile [queries][64 tokens] of the product with V^T;
    // `to`: where this lane stores. Returns whether one is 2^kTop or more. Exponentials are kAhead tiles ahead of the rest.
    __device__ __forceinline__ std::uint32_t store_probabilities(Scores &s, std::uint32_t to, float log2_scale,
                                                                 std::uint32_t never) {
        constexpr bool kKeepOrder = Cut::kGroups == 2;  // as in ../softmax.cuh
        if constexpr (kKeepOrder)
            ptx::keep_order(never);
        else if (never)
            return ~0u;  // or what comes before is moved in here, and spills
        std::uint32_t packed[4], seen = 0;
#pragma unroll
        for (int tile = -kAhead; tile < kTiles; ++tile) {
            const int next = tile + kAhead;
            if (next < kTiles)
#pragma unroll
                for (int i = 4 * next; i < 4 * next + 4; ++i) s[i] = power(s[i], i, log2_scale);
            if (tile < 0) continue;
            const float *const p = s + 4 * tile;
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[column_of(4 * tile + i)] += p[i];
            packed[tile % 4] = ptx::e4m3x4_of_fp32(p[0], p[2], p[1], p[3]);
            seen |= packed[tile % 4] + kUpToSign;
            store(to + tile / 4 * (32 * kBlock), packed, tile);
            if (kKeepOrder) ptx::keep_order(never);
        }
        return seen;
    }

    static __device__ __forceinline__ bool is_too_large(std::uint32_t seen) { return seen & 0x80808080u; }

private:
    static __device__ __forceinline__ float share(float x) { return (x + kLowest) * (1.0f / kOctaves); }

    // From 2^kTop on a byte plus this has its sign bit set, and no carry.
    static constexpr std::uint32_t kUpToSign = 0x08080808u;

    // Four tiles at once, of the last ones as many as there are.
    static __device__ __forceinline__ void store(std::uint32_t to, const std::uint32_t (&packed)[4], int tile) {
        if (tile % 4 == 3) ptx::stmatrix_x4_trans(to, packed);
        if (tile % 4 == 3 || tile + 1 < kTiles) return;
        if (tile % 4 > 0) ptx::stmatrix_x2_trans(to, packed[0], packed[1]);
        // The addresses of lanes 0 .. 7, moved by the 16 queries before.
        if (tile % 4 == 0) ptx::stmatrix_x1_trans(to, packed[0]);
        if (tile % 4 == 2) ptx::stmatrix_x1_trans(to + 16 * kBlock, packed[2]);
    }
};

}  // namespace hsb::cuda::prefill::sm90::fp8

#endif

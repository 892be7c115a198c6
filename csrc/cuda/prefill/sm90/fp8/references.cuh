// What a consumer's scores are taken relative to (softmax.cuh): set by a tile's first page, raised by later ones.
#pragma once

#include "consumer.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90::fp8 {

// The references of the tile's first page, a margin above the maxima of its columns. Where one is too large, or is
// none, the reference stays infinite, which sends the page to raise(). No probabilities are stored yet.
template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::set_references() {
    constexpr int kPart = kColumns % 6 == 0   ? 6
                          : kColumns % 4 == 0 ? 4
                                              : 2;  // at a time: there are no registers for more
    const float log2_scale = own_scale();
    static_assert(kPart % 2 == 0 && kColumns % kPart == 0, "whole parts of pairs");
#pragma unroll
    for (int begin = 0; begin < kColumns; begin += kPart) {
        float max[kPart];
#pragma unroll
        for (int c = 0; c < kPart; ++c) {
            const int i = (begin + c) / 2 * 4 + c % 2;
            max[c] = fmaxf(s_[i], s_[i + 2]);
        }
        group_.template over_tokens<kGroupQueries>(max, begin, probability_ + (buffer_ ^ 1) * kBuffer,
                                                   [](float x, float y) { return fmaxf(x, y); });
#pragma unroll
        for (int c = 0; c < kPart; ++c)
            if (fabsf(max[c] * log2_scale) <= References::kLarge)
                softmax_.refer(begin + c, Softmax::rounded(begin + c, -fmaf(max[c], log2_scale, kMargin)));
    }
}

// Raises the references that the page's scores passed, scales what has been summed, and stores the page's
// probabilities again. No product is under way, and both buffers of probabilities are free for the exchange.
template <class T, int HeadDim, int Pair>
template <class Kind>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::raise(int stage, bool moved) {
    constexpr int kRow = (kGroupQueries + 2) * 4;  // two more, so that lanes fall into different banks
    const std::uint32_t maxima = probability_, highest = maxima + 16 * kRow, shifts = highest + kRow;
    static_assert(18 * kRow <= 2 * kBuffer, "the exchange's place");
    const int lane = ptx::lane();
    const float log2_scale = own_scale(), as_pages = scale();
    const float units = __uint_as_float(0x7f000000u - __float_as_uint(log2_scale));  // 1 / log2_scale, a power of 2
    scores_again<Kind>(stage);  // the exponentials took their registers
    const std::uint32_t mine = maxima + (group_.warp * 4 + lane / 4 % 4) * kRow + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < kScores; j += 4) {
        const float2 added = softmax_.added(s_ + j, j / 4, as_pages);  // which are taken back
        softmax_.sum[j / 2] -= added.x;
        softmax_.sum[j / 2 + 1] -= added.y;
        float x = fmaxf(s_[j], s_[j + 2]), y = fmaxf(s_[j + 1], s_[j + 3]);
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 16));
        y = fmaxf(y, __shfl_xor_sync(~0u, y, 16));
        if (lane < 16) ptx::store_shared_f32x2(mine + j * 8, x, y);
        ptx::keep_apart(a_.never);
    }
    group_.sync();

    const int column = ptx::thread_index() % kGroupThreads;
    bool large = false;
    if (column < kGroupQueries) {
        float max = negative_infinity();
#pragma unroll 8
        for (int row = 0; row < 16; ++row) max = fmaxf(max, ptx::load_shared_f32(maxima + row * kRow + column * 4));
        ptx::store_shared_f32(highest + column * 4, max);
        large = max > negative_infinity() && fabsf(max * log2_scale) > References::kLarge;
    }
    const bool was_shifted = is_shifted();
    // By way of shared memory: of the barrier's own answer ptxas makes spills, here.
    if (large) ptx::store_shared_u32(Shared::large_at(base_, group_.index), 1);
    group_.sync();
    const bool shifted = ptx::load_shared_u32(Shared::large_at(base_, group_.index)) != 0;
    if (shifted && column == 0) ptx::store_shared_f32(Shared::scale_at(base_, group_.index), kShiftedScale);

#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
        const int query = query_of(c, lane);
        const float max = ptx::load_shared_f32(highest + query * 4), old = softmax_.reference(c);
        float now = Softmax::rounded(c, fminf(old, -fmaf(max, log2_scale, kMargin))), down = old - now;
        if (shifted) {
            // The shift is the negative of a maximum, exactly, so that what it leaves of that score is 0.
            const float before = was_shifted ? -ptx::load_shared_f32(shift_of(query)) : -(old + kMargin) * units;
            const float top = fmaxf(max, before);
            now = -kMargin;
            down = was_shifted ? (top - before) * log2_scale : fmaf(top, log2_scale, old + kMargin);
            if (group_.warp == 0 && lane < 4) ptx::store_shared_f32(shifts + query * 4, -top);
        }
        // Sums may have become infinite; where the old reference was so low, they do not count any more.
        const float factor = ptx::exp2_approx(-down);
        softmax_.sum[c] = down > kForgotten ? 0.0f : softmax_.sum[c] * factor;
        softmax_.refer(c, now);
        const int i = c / 2 * 4 + c % 2;
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
            out_[half][i] *= factor;
            out_[half][i + 2] *= factor;
        }
        if (group_.warp == 0 && lane < 4) ptx::store_shared_f32(maxima + query * 4, factor);
        if (c % 2 == 1) ptx::keep_apart(a_.never);
    }
    group_.sync();
    if (moved) scale_moved(maxima);
    if (shifted) {
        if (column < kGroupQueries) ptx::store_shared_f32(shift_of(column), ptx::load_shared_f32(shifts + column * 4));
        group_.sync();
    }
    scores_again<Kind>(stage);
    if (shifted)
#pragma unroll
        for (int i = 0; i < kScores; ++i) s_[i] += ptx::load_shared_f32(shift_of(query_of(column_of(i), lane)));
    store_probabilities(log2_scale);
    if (shifted)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) softmax_.refer(c, kShiftedReference);
    group_.sync();
}

}  // namespace hsb::cuda::prefill::sm90::fp8

#endif

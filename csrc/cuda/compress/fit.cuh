// How a block is stored, and what 2:4 chooses by: as it stands in the tensor, or as a pruner that was fitted to it says
// (hsb_compress_params, hsbench/cache/fit.py). Kernels are instantiated for either.
//
// A thread has chunks of 8 values of one column of chunks, so that what belongs to channels is loaded once.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/queries.cuh"
#include "params.h"
#include "prune.cuh"

namespace hsb::cuda {

// What a source offers:
//
//   load(row, chunk)          K: what becomes a chunk of a row of what is stored
//   stored(x)                 that, or a chunk of V, as it is stored
//   scores(stored, token)     what 2:4 chooses by
//   keep_chunk(stored)        the same, of K: both groups of a chunk, pruned
//   token_weights(token)      V: of 16 tokens of the block, for
//   keep_group<place>(x, w, g)    two groups of 4 tokens, 4 g and on of those 16, pruned
struct AsItIs {
    static constexpr bool kIsPlain = true;
    struct Args {};
    struct TokenWeights {};

    __device__ __forceinline__ AsItIs(const Args &, std::uint32_t, std::uint32_t, std::int64_t, int) {}

    __device__ __forceinline__ uint4 load(const std::uint16_t *row, int chunk) const {
        return ptx::load_once_16(row + chunk * 8);
    }
    __device__ __forceinline__ uint4 stored(uint4 x) const { return x; }
    __device__ __forceinline__ uint4 scores(uint4 stored, int) const { return stored; }
    __device__ __forceinline__ KeptPairs keep_chunk(uint4 stored) const {
        std::uint32_t groups[4];
        split_groups(stored, groups);
        return keep_2_of_4<0>(groups);
    }
    __device__ __forceinline__ TokenWeights token_weights(int) const { return {}; }
    template <int place>
    __device__ __forceinline__ KeptPairs keep_group(const std::uint32_t (&x)[4], const TokenWeights &, int) const {
        return keep_2_of_4<place>(x);
    }
};

struct FitArgs {
    const float *shift;            // [heads, head_dim] or NULL; heads of all batches
    const std::uint16_t *weights;  // K: [heads, head_dim], V: [heads, seq]; or NULL
    float half_fold;
    bool mirror;  // K's order
};

// What is not there is branched around: the same for all threads.
template <class T, int HeadDim, int Operand>
class Fitted {
public:
    static constexpr bool kIsPlain = false;
    using Args = FitArgs;
    struct TokenWeights {
        std::uint32_t pairs[8];
    };

    // Of the block's tokens, from `token` of the head on, and of the chunks in column `chunk`.
    __device__ __forceinline__ Fitted(const Args &a, std::uint32_t head, std::uint32_t block, std::int64_t seq,
                                      int chunk)
        : half_fold_(a.half_fold), mirror_(a.mirror), shifts_(a.shift), weighs_(a.weights), tokens_(nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const std::uint32_t at = head * HeadDim + channel(chunk * 8 + i);
            shift_[i] = a.shift ? __ldg(a.shift + at) : 0.0f;
            if (Operand == HSB_KEY) weight_[i] = a.weights ? to_float(__ldg(a.weights + at)) : 1.0f;
        }
        if constexpr (Operand == HSB_KEY) {
            // 8 places are 2 channels of each end of either half (queries.cuh): near, upper near, far, upper far.
            constexpr int kHalf = HeadDim / 2;
            words_[0] = mirror_ ? chunk * 2 : chunk * 8;
            words_[1] = mirror_ ? kHalf + chunk * 2 : chunk * 8 + 2;
            words_[2] = mirror_ ? kHalf - 2 - chunk * 2 : chunk * 8 + 4;
            words_[3] = mirror_ ? HeadDim - 2 - chunk * 2 : chunk * 8 + 6;
        }
        if (Operand == HSB_VALUE && a.weights) tokens_ = a.weights + head * seq + std::int64_t{block} * kBlock;
    }

    // Four words, whatever the order: a branch here, and ptxas would wait for one chunk before it loads the next.
    __device__ __forceinline__ uint4 load(const std::uint16_t *row, int) const {
        return {word(row + words_[0]), word(row + words_[1]), word(row + words_[2]), word(row + words_[3])};
    }
    __device__ __forceinline__ uint4 stored(uint4 x) const {
        if constexpr (Operand == HSB_KEY) {
            const std::uint32_t even = mirror_ ? kEvenMirrorGroup : 0x3210, odd = mirror_ ? kOddMirrorGroup : 0x7654;
            x = {ptx::permute_bytes(x.x, x.z, even), ptx::permute_bytes(x.y, x.w, even),
                 ptx::permute_bytes(x.x, x.z, odd), ptx::permute_bytes(x.y, x.w, odd)};
        }
        if (!shifts_) return x;
        return {moved(x.x, shift_[0], shift_[1]), moved(x.y, shift_[2], shift_[3]), moved(x.z, shift_[4], shift_[5]),
                moved(x.w, shift_[6], shift_[7])};
    }
    __device__ __forceinline__ uint4 scores(uint4 stored, int token) const {
        if (!weighs_) return stored;
        if constexpr (Operand == HSB_KEY) {
            return {weighed(stored.x, weight_[0], weight_[1]), weighed(stored.y, weight_[2], weight_[3]),
                    weighed(stored.z, weight_[4], weight_[5]), weighed(stored.w, weight_[6], weight_[7])};
        } else {
            const float w = token_weight(token);
            return {weighed(stored.x, w, w), weighed(stored.y, w, w), weighed(stored.z, w, w), weighed(stored.w, w, w)};
        }
    }
    __device__ __forceinline__ KeptPairs keep_chunk(uint4 stored) const {
        std::uint32_t groups[4], by[4];
        split_groups(stored, groups);
        split_groups(scores(stored, 0), by);
        return keep_2_of_4<0>(groups, by);
    }
    __device__ __forceinline__ TokenWeights token_weights(int token) const {
        TokenWeights w;
        const std::uint32_t ones = Element<T>::pack(1.0f, 1.0f);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const std::uint16_t *pair = tokens_ + token + 2 * i;  // 16 bits at a time: seq may be odd
            w.pairs[i] = tokens_ ? __ldg(pair) | static_cast<std::uint32_t>(__ldg(pair + 1)) << 16 : ones;
        }
        return w;
    }
    template <int place>
    __device__ __forceinline__ KeptPairs keep_group(const std::uint32_t (&x)[4], const TokenWeights &w, int g) const {
        const float2 a = Element<T>::unpack(w.pairs[g * 2]), b = Element<T>::unpack(w.pairs[g * 2 + 1]);
        const std::uint32_t by[4] = {weighed(x[0], a.x, a.x), weighed(x[1], a.y, a.y), weighed(x[2], b.x, b.x),
                                     weighed(x[3], b.y, b.y)};
        Pruned pruned = prune_2_of_4<place>(x, by);
        if (half_fold_ != 0.0f) fold(pruned);
        return pruned.pairs();
    }

private:
    // The channel at a place of what is stored (params.h).
    __device__ __forceinline__ int channel(int place) const {
        if (Operand != HSB_KEY || !mirror_) return place;
        const int g = place / 4, i = place % 4;
        return (i & 1 ? HeadDim / 2 - 1 - g : g) + i / 2 * (HeadDim / 2);
    }
    static __device__ __forceinline__ std::uint32_t word(const std::uint16_t *pair) {
        return __ldg(reinterpret_cast<const std::uint32_t *>(pair));
    }
    static __device__ __forceinline__ float to_float(std::uint16_t bits) { return Element<T>::unpack(bits).x; }
    __device__ __forceinline__ float token_weight(int token) const {
        return tokens_ ? to_float(__ldg(tokens_ + token)) : 1.0f;
    }
    static __device__ __forceinline__ float saturated(float x) {
        return fmaxf(fminf(x, Element<T>::kLargest), -Element<T>::kLargest);
    }
    static __device__ __forceinline__ std::uint32_t moved(std::uint32_t pair, float low, float high) {
        const float2 x = Element<T>::unpack(pair);
        return Element<T>::pack(saturated(__fsub_rn(x.x, low)), saturated(__fsub_rn(x.y, high)));
    }
    static __device__ __forceinline__ std::uint32_t weighed(std::uint32_t pair, float low, float high) {
        const float2 x = Element<T>::unpack(pair);
        return Element<T>::pack(__fmul_rn(x.x, low), __fmul_rn(x.y, high));
    }
    // Each of two gets its share of the two that go. A sum of -0 is 0 (hsbench/cache/prune.py).
    __device__ __forceinline__ float share(float a, float b) const {
        return __fmul_rn(__fadd_rn(__fadd_rn(a, b), 0.0f), half_fold_);
    }
    __device__ __forceinline__ void fold(Pruned &x) const {
        const float2 a = Element<T>::unpack(x.dropped[0]), b = Element<T>::unpack(x.dropped[1]);
        const float low = share(a.x, b.x), high = share(a.y, b.y);
#pragma unroll
        for (std::uint32_t &kept : x.kept) {
            const float2 value = Element<T>::unpack(kept);
            kept = Element<T>::pack(saturated(__fadd_rn(value.x, low)), saturated(__fadd_rn(value.y, high)));
        }
    }

    float shift_[8], weight_[Operand == HSB_KEY ? 8 : 1];
    int words_[Operand == HSB_KEY ? 4 : 1];  // K: where a chunk's words are in a row
    float half_fold_;
    bool mirror_, shifts_, weighs_;
    const std::uint16_t *tokens_;  // V: of the block
};

}  // namespace hsb::cuda

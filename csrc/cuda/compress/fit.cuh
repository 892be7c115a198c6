// How a block is stored, and what 2:4 chooses by: as it stands in the tensor, or as a pruner that was fitted to it says
// (hsb_compress_params, hsbench/cache/fit.py). Kernels are instantiated for either.
//
// A thread has chunks of 8 values of one column of chunks, so that what belongs to channels is loaded once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/element.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/bytes.cuh"
#include "cuda/ptx/global.cuh"
#include "params.h"
#include "prune.cuh"

namespace hsb::cuda {

// Where a block that is packed stands: in a tensor that the kernel only reads, and once; or in memory, shared or global,
// that it has written.
struct ReadOnce {
    static __device__ __forceinline__ uint4 chunk(const std::uint16_t *at) { return ptx::load_once_16(at); }
    static __device__ __forceinline__ std::uint32_t word(const std::uint16_t *at) {
        return __ldg(reinterpret_cast<const std::uint32_t *>(at));
    }
};
struct Written {
    static __device__ __forceinline__ uint4 chunk(const std::uint16_t *at) {
        return *reinterpret_cast<const uint4 *>(at);
    }
    static __device__ __forceinline__ std::uint32_t word(const std::uint16_t *at) {
        return *reinterpret_cast<const std::uint32_t *>(at);
    }
};

// What a source offers:
//
//   Memory                    how to load what it stands in
//   load(row, chunk)          K: what becomes a chunk of a row of what is stored. Asks for no source: one waits for what it
//                             loads, and what is packed should be asked for before
//   watch(x, seen)            notes in `seen`, zero at first, whether any of what was loaded is not finite: is_seen()
//   stored(x)                 that, or a chunk of V, as it is stored. K's may then be in pairs of groups: groups_of(),
//                             row_of() make of it what is wanted, and zeros are zeros
//   scores(stored, token)     what 2:4 chooses by
//   with_choice(run)          run(choice), what a warp chooses by, for
//   keep_chunk(choice, x)         both groups of a chunk of K, pruned
//   token_weights(choice, token)  V: of 16 tokens of the block, for
//   keep_group<place>(choice, x, w, g)    two groups of 4 tokens, 4 g and on of those 16, pruned
struct AsItIs {
    static constexpr bool kIsPlain = true;
    static constexpr bool kIsScaled = false;
    using Memory = ReadOnce;
    struct Args {
        std::uint32_t infinity;  // infinity_bits(dtype)
    };
    struct TokenWeights {};

    __device__ __forceinline__ AsItIs(const Args &a, std::uint32_t, std::uint32_t, std::int64_t, int)
        : carry_(non_finite_carry(a.infinity)) {}

    static __device__ __forceinline__ uint4 load(const std::uint16_t *row, int chunk) {
        return ptx::load_once_16(row + chunk * 8);
    }
    __device__ __forceinline__ void watch(uint4 x, std::uint32_t &seen) const { seen |= overflow_of(x, carry_); }
    static __device__ __forceinline__ bool is_seen(std::uint32_t seen) { return seen & kSigns; }
    __device__ __forceinline__ uint4 stored(uint4 x) const { return x; }
    __device__ __forceinline__ uint4 scores(uint4 stored, int) const { return stored; }
    static __device__ __forceinline__ void groups_of(uint4 stored, std::uint32_t (&groups)[4]) {
        split_groups(stored, groups);
    }
    static __device__ __forceinline__ uint4 row_of(uint4 stored) { return stored; }

    struct ByMagnitude {};
    template <class Run>
    __device__ __forceinline__ void with_choice(Run &&run) const {
        run(ByMagnitude());
    }
    __device__ __forceinline__ KeptPairs keep_chunk(ByMagnitude, uint4 stored) const {
        std::uint32_t groups[4];
        split_groups(stored, groups);
        return keep_2_of_4<0>(groups);
    }
    __device__ __forceinline__ TokenWeights token_weights(ByMagnitude, int) const { return {}; }
    template <int place>
    __device__ __forceinline__ KeptPairs keep_group(ByMagnitude, const std::uint32_t (&x)[4], const TokenWeights &,
                                                    int) const {
        return keep_2_of_4<place>(x);
    }

private:
    std::uint32_t carry_;
};

struct FitArgs {
    const float *shift;            // [heads, head_dim] or NULL; heads of all batches
    const std::uint16_t *weights;  // K: [heads, head_dim], V: [heads, seq]; or NULL
    float half_fold;
    const float *scale;  // [heads, head_dim], powers of 2: where pages hold units of it
};

// What is not there is branched around: the same for all threads. Mirror: K's order. Scaled: there are scales, and mostly
// shifts, so that none costs a branch.
//
// Of 8 values a register holds a pair: of V neighbouring channels, as they lie; of K elements i of both groups. It takes no
// instruction to deal values so while they are fp32 for their shift, and a mirrored chunk is loaded so but for two swaps.
template <class T, int HeadDim, int Operand, bool Mirror = false, bool Scaled = false, class Memory_ = ReadOnce>
class Fitted {
    static_assert(Operand == HSB_KEY || !Mirror, "V has no other order");
    static constexpr bool kIsKey = Operand == HSB_KEY;

public:
    static constexpr bool kIsPlain = false;
    static constexpr bool kIsScaled = Scaled;
    using Type = T;
    using Memory = Memory_;
    using Args = FitArgs;
    struct TokenWeights {
        std::uint32_t pairs[8];
    };

    // Of the block's tokens, from `token` of the head on, and of the chunks in column `chunk`.
    __device__ __forceinline__ Fitted(const Args &a, std::uint32_t head, std::uint32_t block, std::int64_t seq,
                                      int chunk)
        : half_fold_(a.half_fold), shifts_(a.shift), weighs_(a.weights), tokens_(nullptr) {
        const std::uint32_t at = head * HeadDim;
#pragma unroll
        for (float &shift : shift_) shift = 0;
        if (a.shift) load_channels(a.shift + at, chunk, shift_);
        if constexpr (Scaled) {
            float scale[8];
            load_channels(a.scale + at, chunk, scale);
#pragma unroll
            for (int i = 0; i < 4; ++i)  // 1 / scale: powers of 2, in the range of the type
                inverse_[i] = Element<T>::pack(inverse(scale[first(i)]), inverse(scale[second(i)]));
        }
        if constexpr (kIsKey)
            if (a.weights) {
                const uint4 pairs = dealt(load(a.weights + at, chunk));
                weight_[0] = pairs.x, weight_[1] = pairs.y, weight_[2] = pairs.z, weight_[3] = pairs.w;
            }
        if (!kIsKey && a.weights) tokens_ = a.weights + head * seq + std::int64_t{block} * kBlock;
    }

    static __device__ __forceinline__ uint4 load(const std::uint16_t *row, int chunk) {
        if constexpr (Mirror)  // no branch may stand between these: ptxas would wait for one chunk before the next
            return {word(row + place(0, chunk)), word(row + place(1, chunk)), word(row + place(2, chunk)),
                    word(row + place(3, chunk))};
        else
            return Memory::chunk(row + chunk * 8);
    }
    __device__ __forceinline__ void watch(uint4 x, std::uint32_t &seen) const {
        seen = Element<T>::zero_times(x.x, Element<T>::zero_times(x.y, seen));
        seen = Element<T>::zero_times(x.z, Element<T>::zero_times(x.w, seen));
    }
    static __device__ __forceinline__ bool is_seen(std::uint32_t seen) { return seen != 0; }
    __device__ __forceinline__ uint4 stored(uint4 x) const {
        if (!Scaled && !shifts_) return dealt(x);
        const float2 a = Element<T>::unpack(x.x), b = Element<T>::unpack(x.y), c = Element<T>::unpack(x.z),
                     d = Element<T>::unpack(x.w);
        const float f[8] = {a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y};
        std::uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            pairs[i] = Element<T>::pack_saturated(__fsub_rn(f[first(i)], shift_[first(i)]),
                                                  __fsub_rn(f[second(i)], shift_[second(i)]));
        return {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
    __device__ __forceinline__ uint4 scores(uint4 stored, int token) const {
        if (!weighs_) return stored;
        if constexpr (kIsKey) {
            return weighed_by_channel(stored);
        } else {
            const float w = tokens_ ? Element<T>::unpack(__ldg(tokens_ + token)).x : 1.0f;
            return {weighed(stored.x, w, w), weighed(stored.y, w, w), weighed(stored.z, w, w), weighed(stored.w, w, w)};
        }
    }
    static __device__ __forceinline__ void groups_of(uint4 stored, std::uint32_t (&groups)[4]) {
        static_assert(kIsKey, "V's groups are of tokens");
        groups[0] = stored.x, groups[1] = stored.y, groups[2] = stored.z, groups[3] = stored.w;
    }
    // Of K: in the order of the page.
    static __device__ __forceinline__ uint4 row_of(uint4 stored) {
        return {ptx::low_halves(stored.x, stored.y), ptx::low_halves(stored.z, stored.w),
                ptx::high_halves(stored.x, stored.y), ptx::high_halves(stored.z, stored.w)};
    }

    template <bool IsAll>
    struct Choice {
        static constexpr bool kIsAll = IsAll;  // weights and a fold, or neither
    };
    template <class Run>
    __device__ __forceinline__ void with_choice(Run &&run) const {
        if (weighs_ || half_fold_ != 0.0f)
            run(Choice<true>());
        else
            run(Choice<false>());
    }
    template <class Choice>
    __device__ __forceinline__ KeptPairs keep_chunk(Choice, uint4 stored) const {
        return prune_chunk<Choice, 0, 0>(stored, stored).pairs();
    }
    template <class Choice>
    __device__ __forceinline__ TokenWeights token_weights(Choice, int token) const {
        TokenWeights w{};
        if constexpr (Choice::kIsAll) {
            const std::uint32_t ones = Element<T>::pack(1.0f, 1.0f);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const std::uint16_t *pair = tokens_ + token + 2 * i;  // 16 bits at a time: seq may be odd
                w.pairs[i] = tokens_ ? __ldg(pair) | static_cast<std::uint32_t>(__ldg(pair + 1)) << 16 : ones;
            }
        }
        return w;
    }
    template <int place, class Choice>
    __device__ __forceinline__ KeptPairs keep_group(Choice, const std::uint32_t (&x)[4], const TokenWeights &w,
                                                    int g) const {
        return prune_group<Choice, place>(x, w, g).pairs();
    }

    // What is stored, in units of its scale; `pair` of the four of a chunk.
    __device__ __forceinline__ std::uint32_t scaled(std::uint32_t stored, int pair) const {
        return Element<T>::multiply(stored, inverse_[pair]);
    }
    // As fp16, saturating.
    __device__ __forceinline__ std::uint32_t wide(std::uint32_t stored, int pair) const {
        const float2 x = Element<T>::unpack(stored), by = Element<T>::unpack(inverse_[pair]);
        return ptx::fp16x2_saturated(__fmul_rn(x.x, by.x), __fmul_rn(x.y, by.y));
    }
    // Of all of a chunk's pairs, in the type; of the channels of a pair; and whether none of the chunk's makes what is
    // stored smaller.
    __device__ __forceinline__ uint4 packed_units() const {
        return {inverse_[0], inverse_[1], inverse_[2], inverse_[3]};
    }
    __device__ __forceinline__ float2 units(int pair) const { return Element<T>::unpack(inverse_[pair]); }
    __device__ __forceinline__ bool has_units_from_1() const {
        const std::uint32_t one = Element<T>::pack(1.0f, 1.0f);
        return (Element<T>::is_ahead(inverse_[0], one) & Element<T>::is_ahead(inverse_[1], one) &
                Element<T>::is_ahead(inverse_[2], one) & Element<T>::is_ahead(inverse_[3], one)) == ~0u;
    }
    // As fp32, whatever it is.
    __device__ __forceinline__ float2 in_units(std::uint32_t stored, int pair) const {
        const float2 x = Element<T>::unpack(stored), by = Element<T>::unpack(inverse_[pair]);
        return {__fmul_rn(x.x, by.x), __fmul_rn(x.y, by.y)};
    }
    // What is kept of a chunk of K, codes at bits 0 and 16; and of two groups of V.
    template <class Choice>
    __device__ __forceinline__ Pruned prune_chunk(Choice, uint4 stored) const {
        return prune_chunk<Choice, 0, 0>(stored, stored);
    }
    template <int place, class Choice>
    __device__ __forceinline__ Pruned prune_group(Choice, const std::uint32_t (&x)[4], const TokenWeights &w,
                                                  int g) const {
        return prune_group<Choice, place>(x, w, g);
    }
    // Scaled, what is kept of a chunk of K; and of two groups of V, in the channels of a pair.
    template <class Choice, int low_place, int high_place>
    __device__ __forceinline__ Pruned keep_scaled_chunk(Choice, uint4 stored) const {
        const uint4 units = {scaled(stored.x, 0), scaled(stored.y, 1), scaled(stored.z, 2), scaled(stored.w, 3)};
        return prune_chunk<Choice, low_place, high_place>(units, stored);
    }
    template <int place, class Choice>
    __device__ __forceinline__ Pruned keep_scaled_group(Choice, const std::uint32_t (&x)[4], const TokenWeights &w,
                                                        int g, int pair) const {
        Pruned pruned = prune_group<Choice, place>(x, w, g);
        pruned.kept[0] = scaled(pruned.kept[0], pair);
        pruned.kept[1] = scaled(pruned.kept[1], pair);
        return pruned;
    }

private:
    // Which of the 8 values that were loaded are the low and the high half of pair i.
    HSB_HOST_DEVICE static constexpr int first(int i) { return !kIsKey ? 2 * i : !Mirror ? i : 2 * i + i % 2; }
    HSB_HOST_DEVICE static constexpr int second(int i) {
        return !kIsKey ? 2 * i + 1 : !Mirror ? i + 4 : 2 * i + 1 - i % 2;
    }
    // The channels that word i of a mirrored chunk holds, two each of both ends of either half (params.h): elements i of two
    // groups, of which the far ones stand in turned order.
    static __device__ __forceinline__ int place(int i, int chunk) {
        return i / 2 * (HeadDim / 2) + (i % 2 ? HeadDim / 2 - 2 - chunk * 2 : chunk * 2);
    }
    static __device__ __forceinline__ std::uint32_t word(const std::uint16_t *pair) { return Memory::word(pair); }
    // What belongs to the channels that load() reads, in its order.
    static __device__ __forceinline__ void load_channels(const float *head, int chunk, float (&x)[8]) {
        const float *own = head + chunk * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = __ldg(reinterpret_cast<const float2 *>(Mirror ? head + place(i, chunk) : own + 2 * i));
            x[2 * i] = pair.x;
            x[2 * i + 1] = pair.y;
        }
    }
    static __device__ __forceinline__ float inverse(float power_of_2) {
        return __uint_as_float((254u << 23) - __float_as_uint(power_of_2));
    }
    // What was loaded, as pairs.
    static __device__ __forceinline__ uint4 dealt(uint4 x) {
        if constexpr (!kIsKey) {
            return x;
        } else if constexpr (Mirror) {
            return {x.x, ptx::permute_bytes<0x1032>(x.y, x.y), x.z, ptx::permute_bytes<0x1032>(x.w, x.w)};
        } else {
            std::uint32_t groups[4];
            split_groups(x, groups);
            return {groups[0], groups[1], groups[2], groups[3]};
        }
    }
    static __device__ __forceinline__ std::uint32_t weighed(std::uint32_t pair, float low, float high) {
        const float2 x = Element<T>::unpack(pair);
        return Element<T>::pack(__fmul_rn(x.x, low), __fmul_rn(x.y, high));
    }
    __device__ __forceinline__ uint4 weighed_by_channel(uint4 x) const {
        const auto by = [&](std::uint32_t pair, int i) {
            const float2 w = Element<T>::unpack(weight_[i]);
            return weighed(pair, w.x, w.y);
        };
        return {by(x.x, 0), by(x.y, 1), by(x.z, 2), by(x.w, 3)};
    }
    template <class Choice, int low_place, int high_place>
    __device__ __forceinline__ Pruned prune_chunk(uint4 x, uint4 stored) const {
        std::uint32_t groups[4], by[4];
        groups_of(x, groups);
        if constexpr (Choice::kIsAll)
            groups_of(weighed_by_channel(stored), by);
        else
            groups_of(stored, by);
        return prune_2_of_4<T, low_place, high_place>(groups, by);
    }
    template <class Choice, int place>
    __device__ __forceinline__ Pruned prune_group(const std::uint32_t (&x)[4], const TokenWeights &w, int g) const {
        if constexpr (Choice::kIsAll) {
            const float2 a = Element<T>::unpack(w.pairs[g * 2]), b = Element<T>::unpack(w.pairs[g * 2 + 1]);
            const std::uint32_t by[4] = {weighed(x[0], a.x, a.x), weighed(x[1], a.y, a.y), weighed(x[2], b.x, b.x),
                                         weighed(x[3], b.y, b.y)};
            Pruned pruned = prune_2_of_4<T, place>(x, by);
            if (half_fold_ != 0.0f) fold(pruned);
            return pruned;
        } else {
            return prune_2_of_4<T, place>(x, x);
        }
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
            kept = Element<T>::pack_saturated(__fadd_rn(value.x, low), __fadd_rn(value.y, high));
        }
    }

    float shift_[8];                         // of the channels as they are loaded
    std::uint32_t inverse_[Scaled ? 4 : 1];  // 1 / scale, of the pairs
    std::uint32_t weight_[kIsKey ? 4 : 1];
    float half_fold_;
    bool shifts_, weighs_;
    const std::uint16_t *tokens_;  // V: of the block
};

}  // namespace hsb::cuda

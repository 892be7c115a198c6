// The exact loss of each eligible block, as a 64-bit key by which blocks are ranked.
//
// fp16: the sum in units of 2^-24 fits 52 bits and is the key.
//
// bf16: the sum S of a block is taken in units that suit its largest dropped magnitude, whose exponent is E:
//
//        2^(E+1)                     2^(E-39)         units of 2^(E-39): 40 bits of window; an element has 8 bits, so
//   |<------ window of an element ----->|             this holds all elements down to the exponent E - 32
//
//   Where an element does not fit, the block's sum is made again in digits that hold any (see add_up_digits). The key is
//   a floating-point number of its own: the place of the highest bit, the 54 bits after it, and one bit that says
//   whether there is more; only where that bit is set and keys are equal do the digits have to be compared.
//
// Elements are added in integers, split at 2^-4 of the fp16 scale (below 2^16, units of 2^-24):
//
//   t = f + 1.5 * 2^19     rounds f to a multiple of 2^-4: the bits of t count them
//   u = (f - that) + 0.75  the rest, exact: the bits of u count units of 2^-24
//
// four additions and two integer sums, with no conversion and no carry.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/global.cuh"
#include "fit.cuh"
#include "params.h"
#include "prune.cuh"

namespace hsb::cuda {

// Digits of a bf16 sum, in units of 2^-133, the smallest subnormal: 4096 elements below 2^128 stay below 2^273.
constexpr int kLossLimbs = 5;  // of 64 bits, most significant first

struct LossArgs {
    const std::uint16_t *x;     // [heads, seq, head_dim]
    unsigned long long *keys;   // [heads, eligible]
    unsigned long long *limbs;  // [heads, eligible, kLossLimbs], bf16: written where the key's lowest bit is set
    std::int64_t seq;
    std::uint32_t first;     // eligible block
    std::uint32_t eligible;  // per head
};

// What the keys of a type need.
template <class T>
constexpr int kKeyBits = Element<T>::kWide ? 64 : 53;
template <class T>
constexpr int kKeyLimbs = Element<T>::kWide ? kLossLimbs : 0;

constexpr int kLossThreads = 128;
constexpr int kDigits = 18;  // of 16 bits: the highest element reaches into digit 16, the sum needs 12 bits more

constexpr float kCoarse = 1.5f * (1 << 19);
constexpr float kFine = 0.75f;

struct FixedSum {
    std::uint32_t coarse = 0;  // modulo 2^32, with the bits of the constants in it
    std::uint32_t fine = 0;
};

// Sums over a block; all threads get the result. `room` is one slot per warp.
template <class Value>
__device__ __forceinline__ Value block_sum(Value mine, Value *room) {
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
    __syncthreads();
    Value sum = 0;
#pragma unroll
    for (int i = 0; i < kLossThreads / 32; ++i) sum += room[i];
    return sum;
}

// Key of a sum of up to 52 bits at bit `position` (units of 2^-133).
__device__ __forceinline__ unsigned long long short_key(unsigned long long sum, int position) {
    if (sum == 0) return 0;
    const int zeros = __clzll(static_cast<long long>(sum));
    const unsigned long long below = zeros == 63 ? 0 : sum << (zeros + 1);  // what follows the highest bit
    return static_cast<unsigned long long>(64 - zeros + position) << 55 | below >> 10 << 1;
}

// The same key from digits, and the digits as limbs for the case that it does not tell all. One thread.
inline __device__ __noinline__ unsigned long long long_key(const std::uint32_t *digits, unsigned long long *limbs) {
    unsigned long long limb[kLossLimbs] = {};  // most significant first
    unsigned long long carry = 0;
    for (int i = 0; i < kLossLimbs * 4; ++i) {
        carry += i < kDigits ? digits[i] : 0;
        limb[kLossLimbs - 1 - i / 4] |= (carry & 0xffff) << (i % 4 * 16);
        carry >>= 16;
    }
    int top = 0;
    while (top < kLossLimbs && limb[top] == 0) ++top;
    if (top == kLossLimbs) return 0;
    const int zeros = __clzll(static_cast<long long>(limb[top]));
    const int position = (kLossLimbs - 1 - top) * 64 + 63 - zeros;  // of the highest bit
    const unsigned long long next = top + 1 < kLossLimbs ? limb[top + 1] : 0;
    // The 64 bits that follow the highest one.
    const unsigned long long high = zeros == 63 ? 0 : limb[top] << (zeros + 1);
    const unsigned long long below = zeros == 63 ? next : high | next >> (63 - zeros);
    bool more = (below & 0x3ff) != 0 || (zeros < 63 && next << (zeros + 1) != 0);
    for (int i = top + 2; i < kLossLimbs; ++i) more = more || limb[i] != 0;
    for (int i = 0; i < kLossLimbs; ++i) limbs[i] = limb[i];
    return static_cast<unsigned long long>(position + 1) << 55 | below >> 10 << 1 | (more ? 1 : 0);
}

// Adds bf16 magnitudes to the digits, whatever their exponents. Rare.
template <int Count>
__device__ __forceinline__ void add_up_digits(const std::uint32_t (&dropped)[Count], std::uint32_t *digits) {
    for (int i = 0; i < kDigits; i += kLossThreads)
        if (i + static_cast<int>(threadIdx.x) < kDigits) digits[i + threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Count; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const std::uint32_t magnitude = dropped[i] >> (half * 16) & 0x7fff, exponent = magnitude >> 7;
            const std::uint32_t mantissa = (magnitude & 0x7f) | (exponent ? 0x80 : 0);
            const std::uint32_t position = exponent ? exponent - 1 : 0;
            const std::uint32_t placed = mantissa << (position % 16);
            if (placed & 0xffff) atomicAdd(digits + position / 16, placed & 0xffff);
            if (placed >> 16) atomicAdd(digits + position / 16 + 1, placed >> 16);
        }
    __syncthreads();
}

// One CTA per eligible block.
template <class T, int HeadDim, int Operand, class Source>
__global__ void __launch_bounds__(kLossThreads) find_losses(LossArgs a, typename Source::Args fit) {
    constexpr bool kWide = Element<T>::kWide;
    static_assert(!kWide || Element<T>::kFractionBits == 7, "the window and the digits are cut for bf16");
    constexpr int kRowChunks = HeadDim / 8;
    constexpr int kLoads = kBlock * kRowChunks / kLossThreads;  // 16-byte chunks a thread
    __shared__ long long room[kLossThreads / 32];
    __shared__ std::uint32_t largest_of[kLossThreads / 32];
    __shared__ std::uint32_t digits[kDigits];
    const int thread = threadIdx.x, lane = thread % 32;
    const std::uint32_t head = blockIdx.x / a.eligible, block = a.first + blockIdx.x % a.eligible;
    const std::uint16_t *x = a.x + (head * a.seq + std::int64_t{block} * kBlock) * HeadDim;

    static_assert(kLossThreads % kRowChunks == 0, "a thread's chunks are of one column");
    const int chunk = thread % kRowChunks;
    const Source source(fit, head, block, a.seq, chunk);
    uint4 loaded[kLoads];
    if constexpr (Operand == HSB_KEY) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i)
            loaded[i] = source.load(x + (thread / kRowChunks + i * (kLossThreads / kRowChunks)) * HeadDim, chunk);
    } else {  // chunk c of 4 successive tokens
        static_assert(kLoads % 4 == 0, "whole groups of tokens");
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int item = thread + i / 4 * kLossThreads;
            const int token = item / kRowChunks * 4 + i % 4;
            loaded[i] = ptx::load_once_16(x + token * HeadDim + chunk * 8);
        }
    }
    if constexpr (!Source::kIsPlain) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int token = Operand == HSB_KEY ? 0 : (thread + i / 4 * kLossThreads) / kRowChunks * 4 + i % 4;
            loaded[i] = source.scores(source.stored(loaded[i]), token);
        }
    }
    std::uint32_t dropped[kLoads * 2];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        std::uint32_t groups[4];
        if constexpr (Operand == HSB_KEY) {
            Source::groups_of(loaded[i], groups);
        } else {
            const auto word = [&](int token) {
                const uint4 &row = loaded[i / 4 * 4 + token];
                return i % 4 == 0 ? row.x : i % 4 == 1 ? row.y : i % 4 == 2 ? row.z : row.w;
            };
#pragma unroll
            for (int token = 0; token < 4; ++token) groups[token] = word(token);
        }
        drop_2_of_4(groups, dropped[i * 2], dropped[i * 2 + 1]);
    }

    // bf16 is brought to the scale of fp16 by powers of 2, up and back.
    float up = 1, down = 1;
    int exponent = 0;
    if constexpr (kWide) {
        std::uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < kLoads * 2; ++i) largest = __vmaxu2(largest, dropped[i]);
        largest = largest >> 16 > (largest & 0xffff) ? largest >> 16 : largest & 0xffff;
        largest = __reduce_max_sync(~0u, largest);
        if (lane == 0) largest_of[thread / 32] = largest;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kLossThreads / 32; ++i) largest = largest > largest_of[i] ? largest : largest_of[i];
        // Below 15 the factor would leave the range, and there is room for all bits anyway.
        exponent = largest >> 7 > 15 ? static_cast<int>(largest >> 7) : 15;
        up = __uint_as_float(static_cast<std::uint32_t>(269 - exponent) << 23);
        // 2^(exponent - 142), where exponent 15 makes it a subnormal.
        down = exponent > 15 ? __uint_as_float(static_cast<std::uint32_t>(exponent - 15) << 23)
                             : __uint_as_float(1u << 22);
    }
    FixedSum sum;
    std::uint32_t inexact = 0;
    const auto add = [&](float f) {
        const float t = kWide ? __fmaf_rn(f, up, kCoarse) : __fadd_rn(f, kCoarse);
        const float rounded = __fadd_rn(t, -kCoarse);
        const float rest = kWide ? __fmaf_rn(f, up, -rounded) : __fadd_rn(f, -rounded);
        const float u = __fadd_rn(rest, kFine);
        sum.coarse += __float_as_uint(t);
        sum.fine += __float_as_uint(u);
        if (kWide)  // whether all of f is in there
            inexact |= __float_as_uint(__fmaf_rn(__fadd_rn(__fadd_rn(u, -kFine), rounded), down, -f));
    };
#pragma unroll
    for (int i = 0; i < kLoads * 2; ++i) {
        const float2 f = Element<T>::unpack(dropped[i]);
        add(f.x);
        add(f.y);
    }
    constexpr std::uint32_t kAdded = kLoads * 4;
    static_assert(kAdded * 32 <= 1024, "a warp's sums stay within 31 bits: 2^20 and 2^19 an element");
    const std::uint32_t coarse = __reduce_add_sync(~0u, sum.coarse - kAdded * __float_as_uint(kCoarse));
    const std::uint32_t fine = __reduce_add_sync(~0u, sum.fine - kAdded * __float_as_uint(kFine));
    const long long of_warp = (static_cast<long long>(coarse) << 20) + static_cast<std::int32_t>(fine);
    const auto total = static_cast<unsigned long long>(block_sum(of_warp, room));
    unsigned long long key = total;
    if constexpr (kWide) {
        if (__syncthreads_or(inexact << 1)) {  // any bit but the sign
            add_up_digits(dropped, digits);
            if (thread == 0) key = long_key(digits, a.limbs + std::int64_t{blockIdx.x} * kLossLimbs);
        } else {
            // Units of 2^(exponent - 166) to units of 2^-133; bits that this shifts out are zeros.
            key = exponent >= 33 ? short_key(total, exponent - 33) : short_key(total >> (33 - exponent), 0);
        }
    }
    if (thread == 0) a.keys[blockIdx.x] = key;
}

}  // namespace hsb::cuda

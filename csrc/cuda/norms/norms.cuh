// Sums of squares and largest magnitudes of tokens as a pruner stores them (hsb_token_norms_params).
//
// A lane has chunks of 8 channels. The lanes of a row first halve the channels among themselves, each keeping half of
// its sums as long as it has several, then what is left of a chunk: channel j of the 8 is where the bits of the lane
// say.
#pragma once

#include <cstdint>

#include "cuda/compress/fit.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx/global.cuh"
#include "params.h"

namespace hsb::cuda {

struct NormArgs {
    const std::uint16_t *x;  // [heads, seq, head_dim]; heads of all batches
    double *squares;         // [heads, seq]
    std::uint16_t *largest;  // [heads, seq]
    std::int64_t seq;
    std::uint32_t runs;   // of a head
    std::uint32_t items;  // runs in all
};

constexpr int kNormWarps = 4;
constexpr int kNormLoads = 4;  // chunks that a lane has in flight

template <int HeadDim>
constexpr int kNormTokens = kNormLoads * 32 / (HeadDim / 8);  // of a warp

// Halves `Count` sums among lanes `Lanes` apart, and goes on with half the lanes.
template <int Count, int Lanes>
__device__ __forceinline__ double sum_by_halves(double (&y)[8], int lane) {
    if constexpr (Lanes > 0 && Count > 1) {
        const bool upper = lane & Lanes;
#pragma unroll
        for (int j = 0; j < Count / 2; ++j) {
            const double theirs = upper ? y[j] : y[j + Count / 2], mine = upper ? y[j + Count / 2] : y[j];
            y[j] = __dadd_rn(mine, __shfl_xor_sync(~0u, theirs, Lanes));
        }
        return sum_by_halves<Count / 2, Lanes / 2>(y, lane);
    } else if constexpr (Lanes > 0) {
        y[0] = __dadd_rn(y[0], __shfl_xor_sync(~0u, y[0], Lanes));
        return sum_by_halves<Count, Lanes / 2>(y, lane);
    } else {
        return y[0];
    }
}

// One run of tokens per warp.
template <class T, int HeadDim>
__global__ void __launch_bounds__(kNormWarps * 32) find_token_norms(NormArgs a, FitArgs fit) {
    constexpr int kLanes = HeadDim / 8;  // of a row
    static_assert(kLanes >= 8, "eight sums are dealt to as many lanes");
    const int lane = threadIdx.x % 32, chunk = lane % kLanes;
    const std::uint32_t item = blockIdx.x * kNormWarps + threadIdx.x / 32;
    if (item >= a.items) return;
    const std::uint32_t head = item / a.runs;
    const std::int64_t first = std::int64_t{item % a.runs} * kNormTokens<HeadDim> + lane / kLanes;
    const Fitted<T, HeadDim, HSB_VALUE> source(fit, head, 0, a.seq, chunk);
    uint4 x[kNormLoads];
#pragma unroll
    for (int i = 0; i < kNormLoads; ++i) {
        const std::int64_t token = first + i * (32 / kLanes);
        x[i] =
            token < a.seq ? ptx::load_once_16(a.x + (head * a.seq + token) * HeadDim + chunk * 8) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kNormLoads; ++i) {
        const uint4 stored = source.stored(x[i]);
        const std::uint32_t words[4] = {stored.x, stored.y, stored.z, stored.w};
        double y[8];
        std::uint32_t most = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 value = Element<T>::unpack(words[j]);
            const auto low = static_cast<double>(value.x), high = static_cast<double>(value.y);
            y[2 * j] = __dmul_rn(low, low);
            y[2 * j + 1] = __dmul_rn(high, high);
            most = __vmaxu2(most, words[j] & kMagnitudes);
        }
        double sum = sum_by_halves<8, kLanes / 2>(y, lane);
#pragma unroll
        for (int lanes = kLanes / 2; lanes >= kLanes / 8; lanes /= 2)
            sum = __dadd_rn(sum, __shfl_xor_sync(~0u, sum, lanes));
        most = most >> 16 > (most & 0xffff) ? most >> 16 : most & 0xffff;
#pragma unroll
        for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) most = max(most, __shfl_xor_sync(~0u, most, lanes));
        const std::int64_t token = first + i * (32 / kLanes);
        if (chunk == 0 && token < a.seq) {
            a.squares[head * a.seq + token] = sum;
            a.largest[head * a.seq + token] = static_cast<std::uint16_t>(most);
        }
    }
}

}  // namespace hsb::cuda

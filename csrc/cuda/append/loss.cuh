// The loss that a block is judged by while a cache grows (hsb_growing): a sum in fp64 whose order is given, by halves.
//
// Of [64 tokens][head_dim] the first six halvings add tokens up: a thread has a channel, and takes tokens in the order in which
// halving meets them, 0, 32, 16, 48, 8, .. Then channels are added likewise.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/page.cuh"
#include "open_page.cuh"

namespace hsb::cuda::append {

// fp64 [8 parts][head_dim], and then of the channels.
template <int HeadDim>
struct LossRoom {
    double parts[8][HeadDim];
};

// The number of the `bits` lowest bits, turned round.
__device__ __forceinline__ int reversed(int x, int bits) { return static_cast<int>(__brev(x) >> (32 - bits)); }

// Of a block `x` [64][head_dim] in shared memory, in the tensor's own order; `weights` of K's channels, or null. All threads
// get it. `is_key`: groups run along head_dim, in the order of the page.
template <class T, int HeadDim>
__device__ __noinline__ double block_loss(const std::uint16_t *x, const std::uint16_t *weights, bool is_key,
                                          bool mirror, LossRoom<HeadDim> &room) {
    const int place = threadIdx.x;
    if (place < HeadDim) {
        const auto score = [&](int token, int at) {
            const int channel = channel_at<HeadDim>(at, mirror);
            const float value = Element<T>::unpack(x[token * HeadDim + channel]).x;
            if (!weights) return fabsf(value);
            const float weight = Element<T>::unpack(__ldg(weights + channel)).x;
            return fabsf(Element<T>::unpack(Element<T>::pack(__fmul_rn(value, weight), 0.0f)).x);
        };
        const auto dropped = [&](int token) {
            const float mine = score(token, place);
            int ahead = 0;  // of the others in the group
            const int at = is_key ? place % kGroup : token % kGroup;
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if (i == at) continue;
                const float other = is_key ? score(token, place - at + i) : score(token - at + i, place);
                ahead += other > mine || (other == mine && i < at);
            }
            return ahead >= 2 ? static_cast<double>(mine) : 0.0;
        };
#pragma unroll 1
        for (int part = 0; part < 8; ++part) {
            double sum[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = dropped(reversed(part * 8 + i, 6));
#pragma unroll
            for (int step = 1; step < 8; step *= 2)
#pragma unroll
                for (int i = 0; i < 8; i += 2 * step) sum[i] += sum[i + step];
            room.parts[part][place] = sum[0];
        }
        double sum[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = room.parts[i][place];
#pragma unroll
        for (int step = 1; step < 8; step *= 2)
#pragma unroll
            for (int i = 0; i < 8; i += 2 * step) sum[i] += sum[i + step];
        room.parts[0][place] = sum[0];
    }
    for (int half = HeadDim / 2; half > 0; half /= 2) {
        __syncthreads();
        if (place < half) room.parts[0][place] += room.parts[0][place + half];
    }
    __syncthreads();
    return room.parts[0][0];
}

}  // namespace hsb::cuda::append

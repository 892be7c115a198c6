// Attention over parts of a sequence to attention over all of it, in one launch (hsb_combine_params). A warp has a query.
//
// All loads of a query are asked for before the first is waited for: between ranks this is what remains of a step once the
// message is there, and it is latency alone.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/fragments.cuh"
#include "params.h"

namespace hsb::cuda {

struct CombineArgs {
    const unsigned char *outs;  // of each part [rows, head_dim], 4-byte aligned
    const unsigned char *lses;  // of each part [rows], fp32
    std::uint32_t *out;         // [rows, head_dim], two elements each
    float *lse;                 // [rows]
    std::int64_t rows;
    std::int64_t part_bytes;  // from a part to the next
    std::int32_t parts;
};

constexpr int kCombineWarps = 4;
constexpr int kCombineAhead = 8;  // parts whose outs are in flight

template <class T, int HeadDim>
__global__ void __launch_bounds__(kCombineWarps * 32) combine_parts(CombineArgs a) {
    constexpr int kWords = HeadDim / 64;  // of a lane
    const int lane = threadIdx.x % 32;
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kCombineWarps + threadIdx.x / 32;
    if (row >= a.rows) return;
    const auto lse_of = [&](int part) {
        return __ldg(reinterpret_cast<const float *>(a.lses + part * a.part_bytes) + row);
    };
    const auto out_of = [&](int part, int word) {
        const auto *const first = reinterpret_cast<const std::uint32_t *>(a.outs + part * a.part_bytes);
        return __ldg(first + row * (HeadDim / 2) + word * 32 + lane);
    };
    std::uint32_t ahead[kCombineAhead][kWords];
    float lses[kCombineAhead];
    const auto ask = [&](int first) {
#pragma unroll
        for (int i = 0; i < kCombineAhead; ++i) {
            if (first + i >= a.parts) continue;
            lses[i] = lse_of(first + i);
#pragma unroll
            for (int word = 0; word < kWords; ++word) ahead[i][word] = out_of(first + i, word);
        }
    };
    ask(0);
    const float none = negative_infinity();
    float most = none;
    for (int part = 0; part < a.parts; ++part) most = fmaxf(most, lse_of(part));
    // Where no part has tokens there is nothing to take off: exp(-infinity) is 0.
    const float reference = most == none ? 0.0f : most;
    float sum = 0.0f;
    for (int part = 0; part < a.parts; ++part) sum += expf(lse_of(part) - reference);
    const float lse = reference + logf(sum);
    const float finite = most == none ? 0.0f : lse;
    float2 total[kWords] = {};
    for (int first = 0; first < a.parts; first += kCombineAhead) {
        if (first > 0) ask(first);
#pragma unroll
        for (int i = 0; i < kCombineAhead; ++i) {
            if (first + i >= a.parts) break;
            const float weight = expf(lses[i] - finite);
#pragma unroll
            for (int word = 0; word < kWords; ++word) {
                const float2 pair = Element<T>::unpack(ahead[i][word]);
                total[word].x += pair.x * weight;
                total[word].y += pair.y * weight;
            }
        }
    }
#pragma unroll
    for (int word = 0; word < kWords; ++word)
        a.out[row * (HeadDim / 2) + word * 32 + lane] = Element<T>::pack(total[word].x, total[word].y);
    if (lane == 0) a.lse[row] = lse;
}

}  // namespace hsb::cuda

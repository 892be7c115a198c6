// Partial results of one query head, put together by one warp in the order of their index: lanes share the head's dims.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/ptx/math.cuh"

namespace hsb::cuda::decode {

template <int HeadDim>
struct Merged {
    static constexpr int kDims = HeadDim / 32;  // lane l has dims l * kDims ..
    float out[kDims];
    float max;
    float sum;  // the same in all lanes, as is max
};

// What to merge: any source with
//   kAhead              outputs to load before the first is used
//   max(i), sum(i)      of partial result i; max is -inf where there is nothing
//   out(i, float[])     this lane's dims of it, zeros where there is nothing
template <int HeadDim, class Source>
__device__ __forceinline__ Merged<HeadDim> merge(const Source &source, int count, float log2_scale, int lane) {
    constexpr int kDims = HeadDim / 32;
    constexpr int kAhead = Source::kAhead;
    Merged<HeadDim> merged;
#pragma unroll
    for (int d = 0; d < kDims; ++d) merged.out[d] = 0.0f;
    merged.max = negative_infinity();
    float sum = 0.0f;  // this lane's share
    for (int base = 0; base < count; base += 32) {
        const int mine = base + lane;
        const float max_of_mine = mine < count ? source.max(mine) : negative_infinity();
        const float sum_of_mine = mine < count ? source.sum(mine) : 0.0f;
        const int end = count - base < 32 ? count - base : 32;
        float ahead[kAhead][kDims];
        const auto load = [&](int first) {
        // No branch around a load: ptxas would wait for it there. Beyond the end the last one comes again, and weighs 0.
#pragma unroll
            for (int i = 0; i < kAhead; ++i) source.out(base + min(first + i, end - 1), ahead[i]);
        };
        load(0);  // needs neither maximum nor sum
        float max = max_of_mine;
        for (int lanes = 1; lanes < 32; lanes *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, lanes));
        max = fmaxf(max, merged.max);
        const float before = ptx::exp2_approx((merged.max - max) * log2_scale);
        const float weight = mine < count ? ptx::exp2_approx((max_of_mine - max) * log2_scale) : 0.0f;
        merged.max = max;
        sum = sum * before + weight * sum_of_mine;
#pragma unroll
        for (int d = 0; d < kDims; ++d) merged.out[d] *= before;
        for (int first = 0; first < end; first += kAhead) {
            if (first > 0) load(first);
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const float of_last = __shfl_sync(~0u, weight, (first + i) % 32);
                const float of_i = first + i < end ? of_last : 0.0f;
#pragma unroll
                for (int d = 0; d < kDims; ++d) merged.out[d] += of_i * ahead[i][d];
            }
        }
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    merged.sum = sum;
    return merged;
}

// kDims floats of shared or global memory.
template <int kDims>
__device__ __forceinline__ void load_dims(float (&to)[kDims], const float *from) {
    if constexpr (kDims == 4) {
        const float4 x = *reinterpret_cast<const float4 *>(from);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        static_assert(kDims == 2, "head_dim is 64 or 128");
        const float2 x = *reinterpret_cast<const float2 *>(from);
        to[0] = x.x, to[1] = x.y;
    }
}
// Global memory that other CTAs have written: past L1.
template <int kDims>
__device__ __forceinline__ void load_dims_l2(float (&to)[kDims], const float *from) {
    if constexpr (kDims == 4) {
        const float4 x = __ldcg(reinterpret_cast<const float4 *>(from));
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        const float2 x = __ldcg(reinterpret_cast<const float2 *>(from));
        to[0] = x.x, to[1] = x.y;
    }
}
template <int kDims>
__device__ __forceinline__ void store_dims(float *to, const float (&from)[kDims]) {
    if constexpr (kDims == 4)
        *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
    else
        *reinterpret_cast<float2 *>(to) = make_float2(from[0], from[1]);
}

}  // namespace hsb::cuda::decode

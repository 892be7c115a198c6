// The results of one query head, with what they get back of the shifts of K and V, and of V's scale: lanes share the head's
// dims, as in merge.cuh.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/ptx/global.cuh"
#include "elements.cuh"
#include "launch.h"
#include "merge.cuh"

namespace hsb::cuda::decode {

template <class T, int HeadDim, class Stored>
struct Shifts {
    static constexpr int kDims = HeadDim / 32;
    float value[kDims];  // of V, this lane's dims
    float scale[kDims];  // of V, likewise; 1 where there is none

    // Of query head `h` of kv head `head`. Asks for all, and waits for nothing: what needs it comes later.
    __device__ __forceinline__ Shifts(const Arguments &a, int head, int h, int lane) : has_key_(a.key_shift) {
        const std::int64_t at = static_cast<std::int64_t>(head) * HeadDim + lane * kDims;
#pragma unroll
        for (int d = 0; d < kDims; ++d) {
            value[d] = key_[d] = 0.0f;
            scale[d] = 1.0f;
        }
#pragma unroll
        for (int i = 0; i < kDims / 2; ++i) q_[i] = 0;
        if (a.value_shift) load_dims(value, a.value_shift + at);
        const bool has_scale = Elements<Stored>(a).with_value([](auto stored) { return stored.kHasScale; });
        if (has_scale) load_dims(scale, a.value_scale + at);
        if (has_key_) {
            const T *const q = static_cast<const T *>(a.q) + (static_cast<std::int64_t>(head) * a.group + h) * HeadDim;
            load_dims(key_, a.key_shift + at);
#pragma unroll
            for (int i = 0; i < kDims / 2; ++i)
                q_[i] = __ldg(reinterpret_cast<const std::uint32_t *>(q + lane * kDims) + i);
        }
    }

    // q . key_shift, the same in all lanes.
    __device__ __forceinline__ float score() const {
        if (!has_key_) return 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kDims / 2; ++i) {
            const float2 pair = Element<T>::unpack(q_[i]);
            sum += pair.x * key_[2 * i] + pair.y * key_[2 * i + 1];
        }
        for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
        return sum;
    }

private:
    bool has_key_;
    std::uint32_t q_[kDims / 2];
    float key_[kDims];
};

// Asks L2 for the shifts of a kv head, and V's scale, long before they are needed.
template <int HeadDim>
__device__ __forceinline__ void prefetch_shifts(const Arguments &a, int head) {
    constexpr int kLineFloats = 32;
    if (threadIdx.x >= HeadDim / kLineFloats) return;
    const std::int64_t at = static_cast<std::int64_t>(head) * HeadDim + threadIdx.x * kLineFloats;
    if (a.key_shift) ptx::prefetch_l2(a.key_shift + at);
    if (a.value_shift) ptx::prefetch_l2(a.value_shift + at);
    if (a.value_scale) ptx::prefetch_l2(a.value_scale + at);
}

// Asks L2 for what a kv head's queries and results take, before its pages are asked for.
template <class T, int HeadDim>
__device__ __forceinline__ void prefetch_head(const Arguments &a, int head) {
    constexpr int kLine = 128;
    const std::int64_t query_bytes = static_cast<std::int64_t>(a.group) * HeadDim * sizeof(T);
    const int at = static_cast<int>(threadIdx.x) * kLine;
    if (at < query_bytes) ptx::prefetch_l2(static_cast<const char *>(a.q) + head * query_bytes + at);
    constexpr int kVectorBytes = HeadDim * static_cast<int>(sizeof(float));
    const auto ask = [&](const float *vectors, int first) {
        const int line = static_cast<int>(threadIdx.x) - first;
        if (vectors && line >= 0 && line < kVectorBytes / kLine)
            ptx::prefetch_l2(reinterpret_cast<const char *>(vectors + static_cast<std::int64_t>(head) * HeadDim) +
                             line * kLine);
    };
    ask(a.key_scale, 32);
    ask(a.key_shift, 40);
    ask(a.value_shift, 48);
    ask(a.value_scale, 56);
}

// out[head_dim] and lse of one query head, whose maximum is in units of `scale`.
template <class T, int HeadDim, class Stored>
__device__ __forceinline__ void store_result(T *out, float *lse, const Merged<HeadDim> &merged,
                                             const Shifts<T, HeadDim, Stored> &shifts, float scale, const Arguments &a,
                                             int lane) {
    constexpr float kLn2 = 0.693147181f;
    constexpr int kDims = HeadDim / 32;
    const float inverse = Elements<Stored>(a).with_value([](auto stored) { return stored.kUnit; }) / merged.sum;
    const auto result = [&](int d) { return within<T>(merged.out[d] * inverse * shifts.scale[d] + shifts.value[d]); };
    std::uint32_t *const to = reinterpret_cast<std::uint32_t *>(out + lane * kDims);
#pragma unroll
    for (int i = 0; i < kDims / 2; ++i) to[i] = Element<T>::pack(result(2 * i), result(2 * i + 1));
    const float taken = shifts.score() * a.given_scale;
    // The sum is 2^reserve too low.
    if (lane == 0) *lse = merged.max * scale + (logf(merged.sum) + a.reserve * kLn2) + taken;
}

}  // namespace hsb::cuda::decode

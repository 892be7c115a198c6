// A consumer's queries, in e4m3.
//
// Channel c becomes q[c] * K's scale[c] * the scores' scale * 2^-power, in the order of K's channels in its pages. The power is
// the same for all queries of a group, such that the largest value lies in [2^7, 2^8): so what multiplies scores is one number. To
// queries this costs little, for e4m3 is floating point: what is 2^-13 of the group's largest value is still a normal number.
#pragma once

#include "consumer.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::prefill::sm90::fp8 {

// 8 channels of a query, of K's scales, and of both.
template <class T>
__device__ __forceinline__ void scaled(float (&y)[8], const uint4 &x, const float *scales, float by) {
    const float4 low = __ldg(reinterpret_cast<const float4 *>(scales));
    const float4 high = __ldg(reinterpret_cast<const float4 *>(scales) + 1);
    const float2 a = Element<T>::unpack(x.x), b = Element<T>::unpack(x.y);
    const float2 c = Element<T>::unpack(x.z), d = Element<T>::unpack(x.w);
    // In this order, so that nothing is 0 * infinity.
    y[0] = a.x * low.x * by, y[1] = a.y * low.y * by, y[2] = b.x * low.z * by, y[3] = b.y * low.w * by;
    y[4] = c.x * high.x * by, y[5] = c.y * high.y * by, y[6] = d.x * high.z * by, y[7] = d.y * high.w * by;
}

// Group `g` (0 .. 7) of 4 places in mirror order, of the chunks of 8 channels that give 8 groups (cuda/queries.cuh): y[0] is near's
// of the lower half, y[1] far's, y[2] and y[3] those of the upper half.
__device__ __forceinline__ std::uint32_t mirror_group(const float (&y)[4][8], int g) {
    return ptx::e4m3x4_of_fp32(y[0][g], y[1][7 - g], y[2][g], y[3][7 - g]);
}

// A thread takes 4 chunks of 8 channels of a query, the same 4 of all of its queries, whose places are 2 chunks of 16.
template <class T, int HeadDim, int Pair>
__device__ __forceinline__ void Consumer<T, HeadDim, Pair>::load_queries() const {
    constexpr int kTaken = 4, kQuarters = kChunks / kTaken, kAll = kGroupQueries * kQuarters;
    static_assert(kGroupThreads % kQuarters == 0, "a thread's chunks are the same of all queries");
    constexpr int kLargestPower = 8, kMaxPower = 100, kBias = 127;
    const int near = threadIdx.x % kQuarters, far = kChunks / 2 - 1 - near;
    int chunk[kTaken];
#pragma unroll
    for (int j = 0; j < kTaken; ++j)
        chunk[j] = a_.mirror ? (j % 2 ? far : near) + j / 2 * (kChunks / 2) : near * kTaken + j;
    const uint4 *const from = static_cast<const uint4 *>(a_.q) + first_chunk();
    const float *const scales = a_.key_scale + static_cast<std::int64_t>(head_ / a_.group) * HeadDim;

    // All are asked for before the first is waited for.
    uint4 x[Group::share(kAll)][kTaken];
    Group::deal<kAll>([&](int n, int i) {
        const int row = i / kQuarters;
#pragma unroll
        for (int j = 0; j < kTaken; ++j) {
            x[n][j] = make_uint4(0, 0, 0, 0);
            if (first_row_ + row < a_.q_len) x[n][j] = __ldg(from + row * kChunks + chunk[j]);
        }
    });
    float largest = 0.0f;
    Group::deal<kAll>([&](int n, int) {
#pragma unroll
        for (int j = 0; j < kTaken; ++j) {
            float y[8];
            scaled<T>(y, x[n][j], scales + chunk[j] * 8, a_.signed_log2_scale);
#pragma unroll
            for (int k = 0; k < 8; ++k) largest = fmaxf(largest, fabsf(y[k]));
        }
    });
    for (int lanes = 1; lanes < 32; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    if (ptx::lane() == 0) ptx::store_shared_f32(probability_ + group_.warp * 4, largest);
    group_.sync();
#pragma unroll
    for (int warp = 0; warp < 4; ++warp) largest = fmaxf(largest, ptx::load_shared_f32(probability_ + warp * 4));

    const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - kBias;  // of the largest, rounded down
    const int power = min(max(exponent + 1 - kLargestPower, -kMaxPower), kMaxPower);
    if (threadIdx.x % kGroupThreads == 0) {
        const float scale = __uint_as_float((kBias + power) << 23);
        ptx::store_shared_f32x2(Shared::scale_at(base_, group_.index), scale, scale);
    }
    const float by = a_.signed_log2_scale * __uint_as_float((kBias - power) << 23);
    Group::deal<kAll>([&](int n, int i) {
        const int row = i / kQuarters;
        float y[kTaken][8];
#pragma unroll
        for (int j = 0; j < kTaken; ++j) scaled<T>(y[j], x[n][j], scales + chunk[j] * 8, by);
        if (a_.mirror) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                *at_query_chunk(row, near * 2 + half) =
                    make_uint4(mirror_group(y, half * 4), mirror_group(y, half * 4 + 1), mirror_group(y, half * 4 + 2),
                               mirror_group(y, half * 4 + 3));
        } else {
            const auto four = [&](int j, int k) {
                return ptx::e4m3x4_of_fp32(y[j][k], y[j][k + 1], y[j][k + 2], y[j][k + 3]);
            };
#pragma unroll
            for (int j = 0; j < kTaken; j += 2)
                *at_query_chunk(row, near * 2 + j / 2) =
                    make_uint4(four(j, 0), four(j, 4), four(j + 1, 0), four(j + 1, 4));
        }
    });
}

}  // namespace hsb::cuda::prefill::sm90::fp8

#endif

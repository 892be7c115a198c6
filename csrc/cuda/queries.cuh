// Queries as kernels take them, in the order that K's channels have in its pages.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/page.cuh"
#include "cuda/ptx/bytes.cuh"

namespace hsb::cuda {

// The mirror order (params.h): a group of 4 places holds channels g, h - 1 - g of the lower half of them and the same two
// of the upper. So 8 channels from x on and 8 that end as far from the half's other end give 8 groups, of each half 2 places:
//
//   word j of near   x + 2j, x + 2j + 1        even group x + 2j:       low of near's word j, high of far's word 3 - j
//   word j of far    h - 8 - x + 2j, and + 1   odd group x + 2j + 1:    high of near's word j, low of far's word 3 - j
constexpr std::uint32_t kEvenMirrorGroup = 0x7610, kOddMirrorGroup = 0x5432;  // by permute_bytes(near's, far's)

// Four chunks of 8 places, x / 2 and on, from the four of channels that they are in; `from`: near and far of the lower
// half, then of the upper.
__device__ __forceinline__ void mirror_chunks(uint4 (&to)[4], const uint4 (&from)[4]) {
    const auto chunk = [&](std::uint32_t near, std::uint32_t far, std::uint32_t upper_near, std::uint32_t upper_far) {
        return make_uint4(ptx::permute_bytes<kEvenMirrorGroup>(near, far),
                          ptx::permute_bytes<kEvenMirrorGroup>(upper_near, upper_far),
                          ptx::permute_bytes<kOddMirrorGroup>(near, far),
                          ptx::permute_bytes<kOddMirrorGroup>(upper_near, upper_far));
    };
    to[0] = chunk(from[0].x, from[1].w, from[2].x, from[3].w);
    to[1] = chunk(from[0].y, from[1].z, from[2].y, from[3].z);
    to[2] = chunk(from[0].z, from[1].y, from[2].z, from[3].y);
    to[3] = chunk(from[0].w, from[1].x, from[2].w, from[3].x);
}

// load_queries() in mirror order: a lane's pairs are of one half, and of even groups or of odd ones.
template <class T, int HeadDim>
__device__ __forceinline__ void load_mirrored_query(std::uint32_t (&q)[HeadDim / kStepCols][4], const T *query,
                                                    int lane) {
    constexpr int kHalf = HeadDim / 2;
    const std::uint32_t selector = lane % 4 / 2 == 0 ? kEvenMirrorGroup : kOddMirrorGroup;
    const T *const half = query + lane % 2 * kHalf;
#pragma unroll
    for (int step = 0; step < HeadDim / kStepCols; ++step) {
        const uint4 near = __ldg(reinterpret_cast<const uint4 *>(half + step * 8));
        const uint4 far = __ldg(reinterpret_cast<const uint4 *>(half + kHalf - 8 - step * 8));
        q[step][0] = ptx::permute_bytes(near.x, far.w, selector);
        q[step][1] = ptx::permute_bytes(near.y, far.z, selector);
        q[step][2] = ptx::permute_bytes(near.z, far.y, selector);
        q[step][3] = ptx::permute_bytes(near.w, far.x, selector);
    }
}

template <class T, int HeadDim>
__device__ __forceinline__ void load_query(std::uint32_t (&q)[HeadDim / kStepCols][4], const T *query, int lane) {
#pragma unroll
    for (int step = 0; step < HeadDim / kStepCols; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            q[step][i] =
                __ldg(reinterpret_cast<const std::uint32_t *>(query + step * kStepCols + i * 8 + lane % 4 * 2));
}

// Q^T of a warp's queries, from global memory: B fragments (ptx/mma.cuh) per step of 32 dims. Queries beyond `valid` are
// zero. Nothing that is loaded is used inside a branch: there ptxas would wait for it, load by load (3 % of a decode of
// 128k tokens).
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ void load_queries(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const T *from,
                                             std::int32_t valid, std::uint32_t flip, bool mirror, int lane) {
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
        const int query = tile * 8 + lane / 4;
#pragma unroll
        for (int step = 0; step < HeadDim / kStepCols; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) q[tile][step][i] = 0;
        if (query < valid) {
            if (mirror)
                load_mirrored_query<T, HeadDim>(q[tile], from + query * HeadDim, lane);
            else
                load_query<T, HeadDim>(q[tile], from + query * HeadDim, lane);
        }
    }
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int step = 0; step < HeadDim / kStepCols; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) q[tile][step][i] ^= flip;
}

// The product of 8 channels of a query with 8 of a vector.
template <class T>
__device__ __forceinline__ float chunk_times(const uint4 &x, const float4 (&vector)[2]) {
    const float2 a = Element<T>::unpack(x.x), b = Element<T>::unpack(x.y);
    const float2 c = Element<T>::unpack(x.z), d = Element<T>::unpack(x.w);
    const float4 &low = vector[0], &high = vector[1];
    return a.x * low.x + a.y * low.y + b.x * low.z + b.y * low.w + c.x * high.x + c.y * high.y + d.x * high.z +
           d.y * high.w;
}
// 8 of a vector, `chunk` times 8 and on.
__device__ __forceinline__ void load_chunk(float4 (&to)[2], const float *vector, int chunk) {
#pragma unroll
    for (int i = 0; i < 2; ++i) to[i] = __ldg(reinterpret_cast<const float4 *>(vector) + chunk * 2 + i);
}

}  // namespace hsb::cuda

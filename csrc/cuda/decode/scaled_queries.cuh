// Queries over pages whose channels have a scale (hsb_pages::scale): multiplied by K's, in the order of K's channels in its
// pages, as B fragments of the order that kinds/fp8_mma.cuh asks for.
//
// Products are fp16's, whose range the scales may pass by far. But they are powers of 2, so all of a kv head's queries are
// moved together to where their largest is near fp16's, or near 1 where pages' own scales, of up to that, come on top: what
// is more than 2^28, or 2^14, smaller than that loses digits, far below what the largest ones' sums are rounded to. The
// scores' scale takes the same power back.
#pragma once

#include <type_traits>

#include "cuda/kinds/fp8_mma.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/queries.cuh"
#include "cuda/softmax_margin.h"
#include "launch.h"

namespace hsb::cuda::decode {

// What a product of q and K is, as attention takes it: by the arguments, or of these queries alone, by one register.
struct GivenUnits {
    const Arguments &a;
    __device__ float log2_scale() const { return a.log2_scale; }  // powers of 2 a unit
    __device__ float scale() const { return a.scale; }
    __device__ float margin() const { return a.margin; }  // kDecodeMargin in units
};
template <class Stored>
struct OwnUnits {
    float log2;
    __device__ float log2_scale() const { return log2; }
    __device__ float scale() const { return log2 * 0.693147181f; }
    __device__ float margin() const { return Stored::kMargin * ptx::reciprocal_approx(log2); }
};

// Likewise, of K and V whose elements differ.
struct ApartUnits {
    float log2;
    const Arguments &a;
    __device__ float log2_scale() const { return log2; }
    __device__ float scale() const { return log2 * 0.693147181f; }
    __device__ float margin() const { return a.value_margin * ptx::reciprocal_approx(log2); }
};

// The power of 2 that moves a kv head's queries, by the largest magnitude among them, to just below 2^query_power.
struct QueryPower {
    float up, down;

    __device__ QueryPower(float largest, int query_power) {
        // At least 2^(exponent - 127), which becomes 2^top.
        constexpr int kBias = 127;
        const int top = query_power - 1;
        const int exponent = min(max(__float_as_int(largest) >> 23, top + 1), 2 * kBias + top - 1);
        up = __int_as_float((2 * kBias + top - exponent) << 23);
        down = __int_as_float((exponent - top) << 23);
    }
    // Of their scores, in units of a sum of products. Not 0, as in score_scale(); and not infinite, for queries whose scores
    // fp32 cannot hold.
    __device__ float log2_scale(float log2_scale, float unit) const {
        return fminf(fmaxf(log2_scale * down * unit, 1e-30f), 1e30f);
    }
};

// Channels of one lane: those of registers n and n + 2 of a step (fp8_col()) lie in two pairs of neighbours. In mirror order
// (queries.cuh) places c, c + 1 and c + 4, c + 5 are channels g, h - 1 - g and g + 1, h - 2 - g of a half, g being even.
template <int HeadDim>
struct LaneChannels {
    int near, far;  // the first of each pair

    __device__ LaneChannels(int step, int number, bool mirror, int lane) {
        const int place = step * kStepCols + fp8_col(number, lane);
        const int half = lane % 2 * (HeadDim / 2), group = place / 4;
        near = mirror ? half + group : place;
        far = mirror ? half + HeadDim / 2 - 2 - group : place + 4;
    }
};

// Queries beyond a.group are zero. `scale`: [head_dim], K's.
template <class T, int HeadDim, int Tiles>
__device__ __forceinline__ QueryPower load_scaled_queries(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4],
                                                          const T *from, const float *scale, int query_power,
                                                          const Arguments &a, int lane) {
    constexpr int kSteps = HeadDim / kStepCols;
    float2 x[Tiles][kSteps][4];
    // Loads stand in no branch (queries.cuh).
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const LaneChannels<HeadDim> channels(step, n, a.mirror, lane);
#pragma unroll
            for (int far = 0; far < 2; ++far) {
                const int channel = far ? channels.far : channels.near;
                const float2 factor = __ldg(reinterpret_cast<const float2 *>(scale + channel));
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile) {
                    const int query = tile * 8 + lane / 4;
                    const bool is = query < a.group;
                    const auto *const at =
                        reinterpret_cast<const std::uint32_t *>(from + (is ? query : 0) * HeadDim + channel);
                    const float2 pair = Element<T>::unpack(__ldg(at));
                    x[tile][step][n + 2 * far] = is ? float2{pair.x * factor.x, pair.y * factor.y} : float2{0.0f, 0.0f};
                }
            }
        }

    float largest = 0.0f;
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int n = 0; n < 4; ++n)
                largest = fmaxf(largest, fmaxf(fabsf(x[tile][step][n].x), fabsf(x[tile][step][n].y)));
    for (int lanes = 1; lanes < 32; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    const QueryPower power(largest, query_power);
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float2 near = x[tile][step][n], far = x[tile][step][n + 2];
                const float2 first = a.mirror ? float2{near.x, far.y} : near;
                const float2 second = a.mirror ? float2{near.y, far.x} : far;
                q[tile][step][n] = Element<OfE4m3>::pack(first.x * power.up, first.y * power.up) ^ a.flip;
                q[tile][step][n + 2] = Element<OfE4m3>::pack(second.x * power.up, second.y * power.up) ^ a.flip;
            }
    return power;
}

// The queries of a kv head, as the pages' elements ask for them.
template <class Stored, class T, int HeadDim, int Tiles>
__device__ __forceinline__ auto queries_of_head(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], int head,
                                                const Arguments &a, int lane) {
    const T *const from = static_cast<const T *>(a.q) + static_cast<std::int64_t>(head) * a.group * HeadDim;
    const float *const scale = a.key_scale + static_cast<std::int64_t>(head) * HeadDim;
    if constexpr (std::is_same_v<Stored, StoredApart>) {
        if (a.key_stored == HSB_STORED_16) {
            load_queries<T, HeadDim, Tiles>(q, from, a.group, a.flip, a.mirror, lane);
            return ApartUnits{a.log2_scale, a};
        }
        const bool is_int4 = a.key_stored == HSB_STORED_INT4;
        const int query_power = is_int4 ? StoredInt4::kQueryPower : StoredFp8::kQueryPower;
        const auto power = load_scaled_queries<T, HeadDim, Tiles>(q, from, scale, query_power, a, lane);
        return ApartUnits{power.log2_scale(a.log2_scale, is_int4 ? StoredInt4::kUnit : StoredFp8::kUnit), a};
    } else if constexpr (Stored::kHasScale) {
        const auto power = load_scaled_queries<T, HeadDim, Tiles>(q, from, scale, Stored::kQueryPower, a, lane);
        return OwnUnits<Stored>{power.log2_scale(a.log2_scale, Stored::kUnit)};
    } else {
        load_queries<T, HeadDim, Tiles>(q, from, a.group, a.flip, a.mirror, lane);
        return GivenUnits{a};
    }
}

}  // namespace hsb::cuda::decode

// A kv head's queries, made into B fragments by all warps of a CTA together: each thread asks for a few pairs of channels
// before any page is asked for (behind these they would wait some microseconds), and turns them into registers' contents
// in shared memory when they have come.
#pragma once

#include "cuda/decode/launch.h"
#include "cuda/decode/scaled_queries.cuh"
#include "cuda/element.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"

namespace hsb::cuda::decode {

// Bytes of the fragments: u32 [Tiles][head_dim / 32 steps][32 lanes][4].
template <int HeadDim, int Tiles>
constexpr int kQueryBytes = Tiles * (HeadDim / kStepCols) * 32 * 4 * static_cast<int>(sizeof(std::uint32_t));

// Pairs of channels that a thread may be given: of 8 heads over 6 warps, the fewest that a ring of the largest pages leaves.
template <int HeadDim, int Tiles>
constexpr int kQueryPairs = Tiles * 8 * (HeadDim / 2) / (6 * 32) + 1;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

template <class T, int HeadDim, int Tiles, class Stored>
class HeadQueries {
public:
    // Asks for them.
    __device__ __forceinline__ HeadQueries(const Arguments &a, int head) : a_(a) {
        const auto *const q =
            static_cast<const std::uint16_t *>(a.q) + static_cast<std::int64_t>(head) * a.group * HeadDim;
        const float *const scale = a.key_scale + static_cast<std::int64_t>(head) * HeadDim;
        unrolled<kMost>([&](int i) {
            // Beyond the last one it is asked for again, and goes nowhere.
            const int pair = min(pair_of(i), a.group * kPairs - 1);
            const int query = pair / kPairs;
            int channel[2];
            channels_of(channel, pair % kPairs * 2);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                raw_[i][n] = __ldg(q + query * HeadDim + channel[n]);
                if constexpr (Stored::kHasScale) factor_[i][n] = __ldg(scale + channel[n]);
            }
        });
    }

    // Turns what has come into fragments at shared address `fragments`, which all warps have when it returns, and says what
    // their products are in. `largest`: f32 [warps] of shared memory. All threads.
    __device__ __forceinline__ auto make(std::uint32_t fragments, std::uint32_t largest) {
        if constexpr (Stored::kHasScale) {
            float2 x[kMost];
            float most = 0.0f;
            unrolled<kMost>([&](int i) {
                x[i] = Element<T>::unpack(word_of(i));
                x[i].x *= factor_[i][0];
                x[i].y *= factor_[i][1];
                most = fmaxf(most, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
            });
            for (int lanes = 1; lanes < 32; lanes *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
            const int warps = blockDim.x / 32;
            if (threadIdx.x % 32 == 0) ptx::store_shared_f32(largest + threadIdx.x / 32 * 4, most);
            __syncthreads();
            unrolled<kMaxWarps>(
                [&](int warp) { most = fmaxf(most, ptx::load_shared_f32(largest + min(warp, warps - 1) * 4)); });
            const QueryPower power(most, Stored::kQueryPower);
            unrolled<kMost>([&](int i) {
                put(fragments, i, Element<OfE4m3>::pack(x[i].x * power.up, x[i].y * power.up) ^ a_.flip);
            });
            __syncthreads();
            return OwnUnits<Stored>{power.log2_scale(a_.log2_scale, Stored::kUnit)};
        } else {
            unrolled<kMost>([&](int i) { put(fragments, i, word_of(i) ^ a_.flip); });
            __syncthreads();
            return GivenUnits{a_};
        }
    }

    // A lane's registers of the fragments. Queries beyond the group are zero.
    static __device__ __forceinline__ void load(std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4],
                                                std::uint32_t fragments, int group, int lane) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile)
#pragma unroll
            for (int step = 0; step < HeadDim / kStepCols; ++step) {
                const uint4 words = ptx::load_shared_u32x4(fragments + word_at(tile, step, lane, 0) * 4);
                const bool is = tile * 8 + lane / 4 < group;
                q[tile][step][0] = is ? words.x : 0;
                q[tile][step][1] = is ? words.y : 0;
                q[tile][step][2] = is ? words.z : 0;
                q[tile][step][3] = is ? words.w : 0;
            }
    }

private:
    static constexpr int kPairs = HeadDim / 2, kMost = kQueryPairs<HeadDim, Tiles>;

    static __device__ int word_at(int tile, int step, int lane, int number) {
        return ((tile * (HeadDim / kStepCols) + step) * 32 + lane) * 4 + number;
    }
    static __device__ int pair_of(int i) { return static_cast<int>(threadIdx.x) + i * static_cast<int>(blockDim.x); }

    // The channels at places `place` and place + 1 of K's pages (hsb_order).
    __device__ void channels_of(int (&channel)[2], int place) const {
        const int group = place / 4, upper = place % 4 / 2 * (HeadDim / 2);
        channel[0] = a_.mirror ? group + upper : place;
        channel[1] = a_.mirror ? HeadDim / 2 - 1 - group + upper : place + 1;
    }
    __device__ std::uint32_t word_of(int i) const { return raw_[i][0] | static_cast<std::uint32_t>(raw_[i][1]) << 16; }
    // Which lane's, and which of its registers of a step of 32 places, a pair of them is: as pages in order ask for it
    // (queries.cuh), or those of e4m3 (fp8_col()).
    __device__ void put(std::uint32_t fragments, int i, std::uint32_t word) const {
        const int pair = pair_of(i);
        if (pair >= a_.group * kPairs) return;
        const int query = pair / kPairs, place = pair % kPairs * 2, in_step = place % kStepCols;
        int number = in_step / 8, t = in_step % 8 / 2;
        if constexpr (Stored::kHasScale) {
            number = in_step / 16 + in_step % 8 / 4 * 2;
            t = in_step % 16 / 8 * 2 + in_step % 4 / 2;
        }
        const int at = word_at(query / 8, place / kStepCols, query % 8 * 4 + t, number);
        ptx::store_shared_u32(fragments + at * 4, word);
    }

    const Arguments &a_;
    std::uint16_t raw_[kMost][2];
    float factor_[kMost][2];
};

#endif

}  // namespace hsb::cuda::decode

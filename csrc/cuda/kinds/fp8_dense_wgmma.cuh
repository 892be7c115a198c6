// A dense A of e4m3 in the products of a warpgroup, as prefill/sm90/fp8/consumer.cuh starts them.
#pragma once

#include "cuda/ptx/wgmma.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

struct Fp8DenseWgmma {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    template <int HeadDim>
    struct KeyRegisters {};
    template <int HeadDim>
    struct ValueRegisters {};

    template <int HeadDim>
    static __device__ __forceinline__ void load_key(KeyRegisters<HeadDim> &, std::uint32_t, int, std::uint32_t) {}
    template <int HeadDim>
    static __device__ __forceinline__ void load_value(ValueRegisters<HeadDim> &, std::uint32_t, std::uint32_t) {}

    template <int HeadDim, int Sums>
    static __device__ __forceinline__ void multiply_key(float (&scores)[Sums], std::uint32_t page,
                                                        const KeyRegisters<HeadDim> &,
                                                        const ptx::WgmmaTile<HeadDim> &queries) {
        const ptx::WgmmaTile<kFp8DenseRowBytes<KeyPage<HeadDim>>> k(page);
#pragma unroll
        for (int step = 0; step < HeadDim / 32; ++step)
            ptx::wgmma_k32(scores, k.at(step * 32), queries.at(step * 32), step > 0);
    }

    template <int HeadDim, int Sums>
    static __device__ __forceinline__ void multiply_value(float (&out)[HeadDim / 64][Sums], std::uint32_t page,
                                                          const ValueRegisters<HeadDim> &,
                                                          const ptx::WgmmaTile<kBlock> &probabilities) {
        constexpr int kRowBytes = kFp8DenseRowBytes<ValuePage<HeadDim>>;
        const ptx::WgmmaTile<kRowBytes> v(page);
#pragma unroll
        for (int half = 0; half < HeadDim / 64; ++half) {
#pragma unroll
            for (int step = 0; step < kBlock / 32; ++step)
                ptx::wgmma_k32(out[half], v.at(half * 64 * kRowBytes + step * 32), probabilities.at(step * 32), true);
        }
    }
#endif
};

}  // namespace hsb::cuda

// A dense A in the products of a warpgroup, as prefill/sm90/consumer.cuh starts them: all that they
// take of it is the page.
#pragma once

#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "dense_page.cuh"

namespace hsb::cuda {

struct DenseWgmma {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    template <int HeadDim>
    struct KeyRegisters {};
    template <int HeadDim>
    struct ValueRegisters {};

    template <int HeadDim>
    static __device__ __forceinline__ void load_key(KeyRegisters<HeadDim> &, std::uint32_t, int, std::uint32_t) {}
    template <int HeadDim>
    static __device__ __forceinline__ void load_value(ValueRegisters<HeadDim> &, std::uint32_t, std::uint32_t) {}

    template <class T, int HeadDim, int QueryPanelBytes, int Sums>
    static __device__ __forceinline__ void multiply_key(float (&scores)[Sums], std::uint32_t page,
                                                        const KeyRegisters<HeadDim> &,
                                                        const ptx::WgmmaTile<128> &queries) {
        const ptx::WgmmaTile<128> k(page);
#pragma unroll
        for (int step = 0; step < HeadDim / 16; ++step)
            ptx::wgmma_k16(scores, k.at(dense_chunk<KeyPage<HeadDim>>(0, step / 4 * 8) + step % 4 * 32),
                           queries.at(step / 4 * QueryPanelBytes + step % 4 * 32), step > 0, T());
    }

    template <class T, int HeadDim, int Sums>
    static __device__ __forceinline__ void multiply_value(float (&out)[HeadDim / 64][Sums], std::uint32_t page,
                                                          const ValueRegisters<HeadDim> &,
                                                          const ptx::WgmmaTile<128> &probabilities) {
#pragma unroll
        for (int half = 0; half < HeadDim / 64; ++half) {
            const ptx::WgmmaTile<128> v(page + dense_chunk<ValuePage<HeadDim>>(half * 64, 0));
#pragma unroll
            for (int step = 0; step < 4; ++step)
                ptx::wgmma_k16(out[half], v.at(step * 32), probabilities.at(step * 32), true, T());
        }
    }
#endif
};

}  // namespace hsb::cuda

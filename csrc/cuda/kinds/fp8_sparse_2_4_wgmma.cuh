// A 2:4 A of e4m3 in the products of a warpgroup, as prefill/sm90/fp8/consumer.cuh starts them: its metadata are in
// registers.
#pragma once

#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "fp8_page.cuh"

namespace hsb::cuda {

struct Fp8Sparse24Wgmma {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    template <int HeadDim>
    struct KeyRegisters {
        std::uint32_t metadata[HeadDim / kPairCols];
    };
    template <int HeadDim>
    struct ValueRegisters {
        std::uint32_t metadata[HeadDim / 64];  // of O^T's tiles of 64 rows
    };

    // Of strip `warp`, and its steps of 64 cols.
    template <int HeadDim>
    static __device__ __forceinline__ void load_key(KeyRegisters<HeadDim> &registers, std::uint32_t page, int warp,
                                                    std::uint32_t lane_word) {
        constexpr int kPairs = HeadDim / kPairCols;
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair)
            registers.metadata[pair] = ptx::load_shared_u32(page + fp8_metadata_word<KeyPage<HeadDim>>(0, pair, 0) +
                                                            lane_word + warp * (kPairs - 1) * 128);
    }
    template <int HeadDim>
    static __device__ __forceinline__ void load_value(ValueRegisters<HeadDim> &registers, std::uint32_t page,
                                                      std::uint32_t lane_word) {
#pragma unroll
        for (int half = 0; half < HeadDim / 64; ++half)
            registers.metadata[half] =
                ptx::load_shared_u32(page + fp8_metadata_word<ValuePage<HeadDim>>(4 * half, 0, 0) + lane_word);
    }

    template <int HeadDim, int Sums>
    static __device__ __forceinline__ void multiply_key(float (&scores)[Sums], std::uint32_t page,
                                                        const KeyRegisters<HeadDim> &registers,
                                                        const ptx::WgmmaTile<HeadDim> &queries) {
        const ptx::WgmmaTile<kFp8SparseRowBytes<KeyPage<HeadDim>>> k(page);
#pragma unroll
        for (int pair = 0; pair < HeadDim / kPairCols; ++pair)
            ptx::wgmma_sp_k64(scores, k.at(pair * 32), queries.at(pair * 64), registers.metadata[pair], pair > 0);
    }

    template <int HeadDim, int Sums>
    static __device__ __forceinline__ void multiply_value(float (&out)[HeadDim / 64][Sums], std::uint32_t page,
                                                          const ValueRegisters<HeadDim> &registers,
                                                          const ptx::WgmmaTile<kBlock> &probabilities) {
        constexpr int kRowBytes = kFp8SparseRowBytes<ValuePage<HeadDim>>;
        const ptx::WgmmaTile<kRowBytes> v(page);
#pragma unroll
        for (int half = 0; half < HeadDim / 64; ++half) {
            ptx::wgmma_sp_k64(out[half], v.at(half * 64 * kRowBytes), probabilities.at(0), registers.metadata[half],
                              true);
        }
    }
#endif
};

}  // namespace hsb::cuda

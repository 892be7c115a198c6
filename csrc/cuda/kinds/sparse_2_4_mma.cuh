// A 2:4 A as the operand of one warp's products: page_product.cuh and prefill/sm80/product.cuh say what is multiplied.
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"
#include "sparse_2_4_page.cuh"

namespace hsb::cuda {

struct Sparse24Mma {
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int lane) {
        const std::uint32_t first = page + swizzled_chunk<kValueRowBytes<Shape>>(lane % 16, lane / 16);
        std::uint32_t metadata[Strips];  // for a pair of steps
        std::uint32_t own[B::kTiles][4];
#pragma unroll
        for (int step = 0; step < B::kSteps; ++step) {
            if (step % 2 == 0)
#pragma unroll
                for (int strip = 0; strip < Strips; ++strip)
                    metadata[strip] = ptx::load_shared_u32(page + metadata_word<Shape>(strip, step / 2, lane));
            const std::uint32_t of_lane =
                (first ^ step % 4 * 2 * kChunkBytes) + step / 4 * (Shape::kRows * kPanelBytes);
#pragma unroll
            for (int strip = 0; strip < Strips; ++strip) {
                if (strip == 0 || B::kByStrip) b.step(own, step, strip);
                std::uint32_t a[4];
                ptx::ldmatrix_x4(a, of_lane + strip * (kStripRows * kValueRowBytes<Shape>));
#pragma unroll
                for (int tile = 0; tile < B::kTiles; ++tile) {
                    if (step % 2 == 0)
                        ptx::mma_sp_m16n8k32<0>(c[tile][strip], a, own[tile], metadata[strip], T());
                    else
                        ptx::mma_sp_m16n8k32<1>(c[tile][strip], a, own[tile], metadata[strip], T());
                }
            }
        }
    }

    // Tiles of A are read `Ahead` of their use.
    template <class T, class Shape, int FirstStrip, int FirstStep, int Ahead, int Tiles, int Strips, int Steps,
              class Between>
    static __device__ __forceinline__ void interleave(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                      const std::uint32_t (&b)[Tiles][Steps][4], int lane,
                                                      Between &&between) {
        constexpr int kCount = Steps * Strips;
        const std::uint32_t first = page + swizzled_chunk<kValueRowBytes<Shape>>(lane % 16, lane / 16);
        std::uint32_t a[Ahead + 1][4];
        std::uint32_t metadata[2][Strips];  // for a pair of steps
        const auto load = [&](int i) {
            const int strip = FirstStrip + i % Strips, step = FirstStep + i / Strips;
            if (i / Strips == 0 || step % 2 == 0)
                metadata[step / 2 % 2][i % Strips] =
                    ptx::load_shared_u32(page + metadata_word<Shape>(strip, step / 2, lane));
            ptx::ldmatrix_x4(a[i % (Ahead + 1)],
                             (first ^ step * 2 * kChunkBytes) + strip * (kStripRows * kValueRowBytes<Shape>));
        };
#pragma unroll
        for (int i = 0; i < Ahead; ++i) load(i);
        unrolled<kCount>([&](int i) {
            if (i + Ahead < kCount) load(i + Ahead);
            const int step = FirstStep + i / Strips;
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const std::uint32_t m = metadata[step / 2 % 2][i % Strips];
                if (step % 2 == 0)
                    ptx::mma_sp_m16n8k32<0>(c[tile][i % Strips], a[i % (Ahead + 1)], b[tile][i / Strips], m, T());
                else
                    ptx::mma_sp_m16n8k32<1>(c[tile][i % Strips], a[i % (Ahead + 1)], b[tile][i / Strips], m, T());
            }
            between(i, kCount);
        });
    }
};

}  // namespace hsb::cuda

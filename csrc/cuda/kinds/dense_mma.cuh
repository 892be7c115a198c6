// A dense A as the operand of one warp's products: page_product.cuh and prefill/sm80/product.cuh say what is multiplied.
#pragma once

#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"
#include "dense_page.cuh"

namespace hsb::cuda {

struct DenseMma {
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int lane) {
        static_assert(!B::kByStrip, "strips of a step share its registers");
        const std::uint32_t first = page + swizzled_chunk<128>(lane % 16, lane / 16);
        std::uint32_t own[B::kTiles][4];
#pragma unroll
        for (int step = 0; step < B::kSteps * 2; ++step) {  // of 16 cols
            if (step % 2 == 0) b.step(own, step / 2, 0);
            const std::uint32_t of_lane = (first ^ step % 4 * 2 * kChunkBytes) + step / 4 * (Shape::kRows * 128);
#pragma unroll
            for (int strip = 0; strip < Strips; ++strip) {
                std::uint32_t a[4];
                ptx::ldmatrix_x4(a, of_lane + strip * (kStripRows * 128));
#pragma unroll
                for (int tile = 0; tile < B::kTiles; ++tile) {
                    const std::uint32_t *b_step = own[tile] + step % 2 * 2;
                    ptx::mma_m16n8k16(c[tile][strip], a, b_step[0], b_step[1], T());
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
        constexpr int kCount = Steps * 2 * Strips;
        const std::uint32_t first = page + swizzled_chunk<128>(lane % 16, lane / 16);
        std::uint32_t a[Ahead + 1][4];
        const auto load = [&](int i) {
            const int strip = FirstStrip + i % Strips, step = FirstStep * 2 + i / Strips;  // of 16 cols
            ptx::ldmatrix_x4(a[i % (Ahead + 1)], (first ^ step % 4 * 2 * kChunkBytes) +
                                                     step / 4 * (Shape::kRows * 128) + strip * (kStripRows * 128));
        };
#pragma unroll
        for (int i = 0; i < Ahead; ++i) load(i);
        unrolled<kCount>([&](int i) {
            if (i + Ahead < kCount) load(i + Ahead);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                const std::uint32_t *b_step = b[tile][i / Strips / 2] + i / Strips % 2 * 2;
                ptx::mma_m16n8k16(c[tile][i % Strips], a[i % (Ahead + 1)], b_step[0], b_step[1], T());
            }
            between(i, kCount);
        });
    }
};

}  // namespace hsb::cuda

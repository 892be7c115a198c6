// c += A b for a part of a page A in shared memory, otherwise as cuda/page_product.cuh has it, with other work of the
// warp put between its instructions for the tensor cores to overlap with. The part of A is as many strips as c has from
// FirstStrip on, and as many steps as b has from FirstStep on.
#pragma once

#include "cuda/page.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/unrolled.cuh"

namespace hsb::cuda::prefill::sm80 {

// What a product leaves to be done between its A tiles: nothing.
struct NothingBetween {
    __device__ __forceinline__ void operator()(int /*tile*/, int /*of*/) const {}
};

// Tiles of A are read `Ahead` of their use. `between` is called after each with its number and how many there are:
// other work, for the tensor cores to overlap with.
template <class T, class Shape, int FirstStrip = 0, int FirstStep = 0, int Ahead = 0, int Tiles, int Strips, int Steps,
          class Between = NothingBetween>
__device__ __forceinline__ void interleave_dense(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                 const std::uint32_t (&b)[Tiles][Steps][4], int lane,
                                                 Between &&between = {}) {
    static_assert(FirstStrip + Strips <= Shape::kStrips && (FirstStep + Steps) * kStepCols <= Shape::kCols, "beyond A");
    constexpr int kCount = Steps * 2 * Strips;
    const std::uint32_t first = page + swizzled_chunk<128>(lane % 16, lane / 16);
    std::uint32_t a[Ahead + 1][4];
    const auto load = [&](int i) {
        const int strip = FirstStrip + i % Strips, step = FirstStep * 2 + i / Strips;  // of 16 cols
        ptx::ldmatrix_x4(a[i % (Ahead + 1)], (first ^ step % 4 * 2 * kChunkBytes) + step / 4 * (Shape::kRows * 128) +
                                                 strip * (kStripRows * 128));
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

template <class T, class Shape, int FirstStrip = 0, int FirstStep = 0, int Ahead = 0, int Tiles, int Strips, int Steps,
          class Between = NothingBetween>
__device__ __forceinline__ void interleave_sparse(float (&c)[Tiles][Strips][4], std::uint32_t page,
                                                  const std::uint32_t (&b)[Tiles][Steps][4], int lane,
                                                  Between &&between = {}) {
    static_assert(FirstStrip + Strips <= Shape::kStrips && (FirstStep + Steps) * kStepCols <= Shape::kCols, "beyond A");
    constexpr int kCount = Steps * Strips;
    const std::uint32_t first = page + Shape::value_chunk(lane % 16, lane / 16);
    std::uint32_t a[Ahead + 1][4];
    std::uint32_t metadata[2][Strips];  // for a pair of steps
    const auto load = [&](int i) {
        const int strip = FirstStrip + i % Strips, step = FirstStep + i / Strips;
        if (i / Strips == 0 || step % 2 == 0)
            metadata[step / 2 % 2][i % Strips] =
                ptx::load_shared_u32(page + Shape::metadata_word(strip, step / 2, lane));
        ptx::ldmatrix_x4(a[i % (Ahead + 1)],
                         (first ^ step * 2 * kChunkBytes) + strip * (kStripRows * Shape::kValueRowBytes));
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

template <class T, class Shape, int FirstStrip, int FirstStep, int Ahead, int Tiles, int Strips, int Steps,
          class Between>
__device__ __forceinline__ void interleave(hsb_block_kind kind, float (&c)[Tiles][Strips][4], std::uint32_t page,
                                           const std::uint32_t (&b)[Tiles][Steps][4], int lane, Between &&between) {
    switch (kind) {
    case HSB_SPARSE_2_4: return interleave_sparse<T, Shape, FirstStrip, FirstStep, Ahead>(c, page, b, lane, between);
    case HSB_DENSE: break;
    }
    interleave_dense<T, Shape, FirstStrip, FirstStep, Ahead>(c, page, b, lane, between);
}

}  // namespace hsb::cuda::prefill::sm80

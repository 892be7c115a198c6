// c += A b for a part of a page A in shared memory, otherwise as cuda/page_product.cuh has it, with other work of the
// warp put between its instructions for the tensor cores to overlap with. The part of A is as many strips as c has from
// FirstStrip on, and as many steps as b has from FirstStep on.
#pragma once

#include "cuda/block_kinds.cuh"

namespace hsb::cuda::prefill::sm80 {

// What a product leaves to be done between its A tiles: nothing.
struct NothingBetween {
    __device__ __forceinline__ void operator()(int /*tile*/, int /*of*/) const {}
};

// Tiles of A are read `Ahead` of their use. `between` is called after each with its number and how many there are:
// other work, for the tensor cores to overlap with.
template <class T, class Shape, int FirstStrip, int FirstStep, int Ahead, int Tiles, int Strips, int Steps,
          class Between>
__device__ __forceinline__ void interleave(hsb_block_kind kind, float (&c)[Tiles][Strips][4], std::uint32_t page,
                                           const std::uint32_t (&b)[Tiles][Steps][4], int lane, Between &&between) {
    static_assert(FirstStrip + Strips <= Shape::kStrips && (FirstStep + Steps) * kStepCols <= Shape::kCols, "beyond A");
    with_kind(kind, [&](auto of_kind) {
        of_kind.template interleave<T, Shape, FirstStrip, FirstStep, Ahead>(c, page, b, lane, between);
    });
}

}  // namespace hsb::cuda::prefill::sm80

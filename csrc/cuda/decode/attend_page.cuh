// What one warp does with one page pair, whatever its CTA does with the result.
#pragma once

#include "cuda/page_product.cuh"
#include "page_stream.cuh"
#include "softmax.cuh"

namespace hsb::cuda::decode {

// Scores of the current pair's K page, their probabilities, and what these add to the running outputs. `valid`: of the
// block's tokens. `room`: Axis::room_bytes() of the warp's shared memory. `between` is called once the K page has been read;
// T: the element type of the products.
template <class T, class Stored, int HeadDim, int Tiles, class Axis, class Units, class Places, class Between>
__device__ __forceinline__ void attend_page(PageStream<HeadDim, typename Stored::Kinds, Places> &pages,
                                            Running<HeadDim, Tiles, Axis> &running,
                                            const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const Units &units,
                                            float reserve, int valid, std::uint32_t room, int group, int lane,
                                            Between &&between) {
    using Kinds = typename Stored::Kinds;
    float s[Tiles][kBlock / kStripRows][4] = {};
    const std::uint32_t key = pages.wait_key();
    multiply<T, KeyPage<HeadDim>, Kinds>(pages.key_kind(), s, key, HeldB<Tiles, HeadDim / kStepCols>{q}, lane);
    between();
    if (valid < kBlock) mask_tail<Stored>(s, valid, lane);

    std::uint32_t p[Tiles][8];
    softmax<T, Stored>(p, s, running, units.log2_scale(), units.margin(), reserve);

    const std::uint32_t value = pages.wait_value();
    Axis::template weigh<T, Stored, HeadDim>(running.out, pages.value_kind(), value, p, room, group, lane);
}

}  // namespace hsb::cuda::decode

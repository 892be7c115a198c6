// What one warp does with one page pair, whatever its CTA does with the result.
#pragma once

#include "cuda/page_product.cuh"
#include "page_stream.cuh"
#include "softmax.cuh"

namespace hsb::cuda::decode {

// Scores of the current pair's K page, their probabilities, and what these add to the running outputs. `valid`: of the
// block's tokens. `room`: Axis::room_bytes() of the warp's shared memory. `between` is called once the K page has been read;
// T: the element type of q, K, V and the output.
template <class T, class Elements, class Stream, int HeadDim, int Tiles, class Axis, class Units, class Between>
__device__ __forceinline__ void attend_page(const Elements &elements, Stream &pages,
                                            Running<HeadDim, Tiles, Axis> &running,
                                            const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const Units &units,
                                            float reserve, int valid, std::uint32_t room, int group, int lane,
                                            Between &&between) {
    float s[Tiles][kBlock / kStripRows][4] = {};
    const std::uint32_t key = pages.wait_key();
    elements.with_key([&](auto stored) {
        using Stored = decltype(stored);
        using Product = typename Stored::template Product<T>;
        const HeldB<Tiles, HeadDim / kStepCols> b{q};
        multiply<Product, KeyPage<HeadDim>, typename Stored::Kinds>(pages.key_kind(), s, key, b, lane);
    });
    between();
    if (valid < kBlock) mask_tail(elements, s, valid, lane);

    std::uint32_t p[Tiles][8];
    softmax<T>(elements, p, s, running, units.log2_scale(), units.margin(), reserve);

    const std::uint32_t value = pages.wait_value();
    // A row of K's page is another token than its number says where K's elements are narrow.
    const bool dealt = elements.token_of_row(1) != 1;
    elements.with_value([&](auto stored) {
        using Stored = decltype(stored);
        using Product = typename Stored::template Product<T>;
        Axis::template weigh<Product, Stored, HeadDim>(running.out, pages.value_kind(), value, p, dealt, room, group,
                                                       lane);
    });
}

}  // namespace hsb::cuda::decode

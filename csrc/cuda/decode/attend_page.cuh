// What one warp does with one page pair, whatever its CTA does with the result.
#pragma once

#include "cuda/page_product.cuh"
#include "page_stream.cuh"
#include "softmax.cuh"

namespace hsb::cuda::decode {

// Scores of the current pair's K page, their probabilities, and what these add to the running outputs. `valid`: of the
// block's tokens. `between` is called once the K page has been read; T: the element type of the products.
template <class T, class Stored, int HeadDim, int Tiles, class Units, class Between>
__device__ __forceinline__ void attend_page(PageStream<HeadDim, typename Stored::Kinds> &pages,
                                            Running<HeadDim, Tiles> &running,
                                            const std::uint32_t (&q)[Tiles][HeadDim / kStepCols][4], const Units &units,
                                            float reserve, int valid, int lane, Between &&between) {
    using Kinds = typename Stored::Kinds;
    float s[Tiles][kBlock / kStripRows][4] = {};
    const std::uint32_t key = pages.wait_key();
    multiply<T, KeyPage<HeadDim>, Kinds>(pages.key_kind(), s, key, q, lane);
    between();
    if (valid < kBlock) mask_tail<Stored>(s, valid, lane);

    std::uint32_t p[Tiles][2][4];
    softmax<T, Stored>(p, s, running, units.log2_scale(), units.margin(), reserve);

    const std::uint32_t value = pages.wait_value();
    multiply<T, ValuePage<HeadDim>, Kinds>(pages.value_kind(), running.out, value, p, lane);
}

}  // namespace hsb::cuda::decode

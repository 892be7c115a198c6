// Wide blocks (wide.cuh) of a cache of int4, whose products count kInt4Unit times more than those of fp16: sums are moved to
// fp16's units and back, which is exact. There are few such pages.
#pragma once

#include "int4_mma.cuh"
#include "wide.cuh"

namespace hsb::cuda {

struct Int4WideKind : WideKind {
    template <class T, class Shape, class B, int Tiles, int Strips>
    static __device__ __forceinline__ void multiply(float (&c)[Tiles][Strips][4], std::uint32_t page, const B &b,
                                                    int lane) {
        const auto times = [&](float factor) {
#pragma unroll
            for (auto &tile : c)
#pragma unroll
                for (auto &strip : tile)
#pragma unroll
                    for (float &sum : strip) sum *= factor;
        };
        times(kInt4Unit);
        WideKind::template multiply<T, Shape>(c, page, b, lane);
        times(1.0f / kInt4Unit);
    }
};

}  // namespace hsb::cuda

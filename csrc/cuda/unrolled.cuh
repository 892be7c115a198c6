// A loop whose index is a constant in each turn, so that arrays indexed with it surely stay in registers.
#pragma once

#include <utility>

namespace hsb::cuda {

template <class Body, int... I>
__device__ __forceinline__ void unrolled(Body &&body, std::integer_sequence<int, I...>) {
    (body(I), ...);
}

// body(0), .. body(Count - 1).
template <int Count, class Body>
__device__ __forceinline__ void unrolled(Body &&body) {
    unrolled(body, std::make_integer_sequence<int, Count>());
}

}  // namespace hsb::cuda

// From what a struct says at run time to what a kernel template knows at compile time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/element.cuh"

namespace hsb::cuda {

// Calls run(integral_constant<int, head_dim>()). It has been checked.
template <class Run>
void with_head_dim(std::int32_t head_dim, Run &&run) {
    if (head_dim == 64)
        run(std::integral_constant<int, 64>());
    else
        run(std::integral_constant<int, 128>());
}

// Calls run(T(), integral_constant<int, head_dim>()). Both have been checked.
template <class Run>
void dispatch(std::int32_t dtype, std::int32_t head_dim, Run &&run) {
    with_element(dtype, [&](auto type) {
        with_head_dim(head_dim, [&](auto constant_head_dim) { run(type, constant_head_dim); });
    });
}

}  // namespace hsb::cuda

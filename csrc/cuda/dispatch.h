// From what a struct says at run time to what a kernel template knows at compile time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "params.h"

namespace hsb::cuda {

// Calls run(T(), integral_constant<int, head_dim>()). Both have been checked.
template <class Run>
void dispatch(std::int32_t dtype, std::int32_t head_dim, Run &&run) {
    const auto with_type = [&](auto type) {
        if (head_dim == 64)
            run(type, std::integral_constant<int, 64>());
        else
            run(type, std::integral_constant<int, 128>());
    };
    if (dtype == HSB_FP16)
        with_type(__half());
    else
        with_type(__nv_bfloat16());
}

}  // namespace hsb::cuda

#pragma once

namespace hsb::cuda::ptx {

// 2^x in one instruction, subnormal results flushed to zero; 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace hsb::cuda::ptx

// The order of instructions, where ptxas would choose a worse one (sm_90a).
#pragma once

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hsb::cuda::ptx {

// Two ways, both by something that never runs, since `never` is 0, which the compiler must not know.

// ptxas moves no instruction across. Of all that PTX can predicate, this one is not in the way: no branch, no waiting.
__device__ __forceinline__ void keep_order(std::uint32_t never) {
    asm volatile(
        "{\n.reg .pred runs;\nsetp.ne.u32 runs, %0, 0;\n"
        "@runs griddepcontrol.launch_dependents;\n}" ::"r"(never)
        : "memory");
}

// Neither compiler moves instructions across, so that both sides need fewer registers at once; it costs a branch.
__device__ __forceinline__ void keep_apart(std::uint32_t never) {
    if (never) asm volatile("brkpt;");
}

}  // namespace hsb::cuda::ptx

#endif

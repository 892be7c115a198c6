#include "isa.h"

#include "api.h"

namespace hsb::cpu {

int best_isa() {
#if defined(__x86_64__)
    static const int best = [] {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni"))
            return __builtin_cpu_supports("avx512bf16") ? HSB_ISA_AVX512_BF16 : HSB_ISA_AVX512;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
            return HSB_ISA_AVX2;
        return HSB_ISA_PORTABLE;
    }();
    return best;
#else
    return HSB_ISA_PORTABLE;
#endif
}

const bool works_in_halves = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amdfam19h") && __builtin_cpu_supports("avx512f");  // of the family, Zen 3 has no AVX-512
#else
    return false;
#endif
}();

}  // namespace hsb::cpu

extern "C" int32_t hsb_cpu_best_isa(void) { return hsb::cpu::best_isa(); }

// One kernel source, four instruction sets.
//
// Each *_kernel.cpp is compiled once per instruction set (CMakeLists.txt), with HSB_ISA naming the class below that
// `Isa` stands for, and instantiates its kernels for it. Launchers call kernels through dispatch(), which picks the
// class at run time. Launchers are compiled without any SIMD flags: they must run everywhere.
#pragma once

#include "error.h"
#include "params.h"

namespace hsb::cpu {

struct Portable;
struct Avx2;
struct Avx512;
struct Avx512Bf16;

#if defined(HSB_ISA)
using Isa = HSB_ISA;  // set only for kernel sources
#endif

int best_isa();  // an hsb_isa: the best that this machine runs

// Whether this machine has AVX-512 whose vectors are worked on half by half: Zen 4.
extern const bool works_in_halves;

// A type as a value.
template <class T>
struct Tag {
    using type = T;
};

// Calls function(Tag<Portable | Avx2 | Avx512 | Avx512Bf16>{}) for an hsb_isa; AUTO is the best one.
template <class Function>
void dispatch_isa(int isa, Function &&function) {
    const int best = best_isa();
    if (isa == HSB_ISA_AUTO) isa = best;
    HSB_CHECK(isa >= HSB_ISA_PORTABLE && isa <= best, "this processor does not have the instruction set asked for");
#if defined(__x86_64__)
    if (isa == HSB_ISA_AVX512_BF16) return function(Tag<Avx512Bf16>{});
    if (isa == HSB_ISA_AVX512) return function(Tag<Avx512>{});
    if (isa == HSB_ISA_AVX2) return function(Tag<Avx2>{});
#endif
    function(Tag<Portable>{});
}

}  // namespace hsb::cpu

#if defined(HSB_ISA)
#if defined(HSB_HAS_AVX512_BF16)
#include "avx512_bf16.h"
#elif defined(HSB_HAS_AVX512)
#include "avx512.h"
#elif defined(HSB_HAS_AVX2)
#include "avx2.h"
#else
#include "portable.h"
#endif
#endif

// Lanes<Isa>: 16-bit lanes for the compressors, one class per instruction set with the same operations.
//
//   Half                 `width` lanes of 16 bits: floats by their bits
//   Flag                 a yes or no per lane in its sign bit; the other bits are unspecified
//   Mask                 a yes or no per lane, in the form that select() wants
//   Sum<Type>            doubles that add up magnitudes of an element type
#pragma once

#include "cpu/simd/isa.h"

#if defined(HSB_HAS_AVX512)
#include "lanes_avx512.h"
#elif defined(HSB_HAS_AVX2)
#include "lanes_avx2.h"
#else
#include "lanes_portable.h"
#endif

// Compiled in front of every source, for what arithmetic.cmake could not overrule.
//
// The kernels need the arithmetic of IEEE 754: they tell NaN and infinity from numbers, choose blocks by sums whose order
// is the definition's, and share a process with code that counts on subnormal numbers.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "hsbench needs IEEE 754 arithmetic: compile it without -ffast-math, -Ofast and what they are made of"
#endif

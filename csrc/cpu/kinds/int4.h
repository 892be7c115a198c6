// Int4DenseKind and Int4Sparse24Kind: blocks of int4, of which all, or of each 4 values 2, are kept. All that kernels do
// with their pages.
#pragma once

#include "int4/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "int4/compress.h"
#include "int4/decode.h"
#include "int4/prefill.h"
#endif

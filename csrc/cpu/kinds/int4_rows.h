// Int4RowsKind: blocks of int4 of V, of which of each 4 neighbouring head dims of a token 2 are kept. All that kernels do with
// its pages.
#pragma once

#include "int4_rows/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "int4_rows/compress.h"
#include "int4_rows/decode.h"
#endif

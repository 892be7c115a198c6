// Sparse24RowsKind: of each 4 neighbouring head dims of a token of V a block keeps 2. All that kernels do with its pages.
#pragma once

#include "sparse_2_4_rows/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "sparse_2_4_rows/compress.h"
#include "sparse_2_4_rows/decode.h"
#endif

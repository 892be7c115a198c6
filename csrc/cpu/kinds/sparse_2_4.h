// Sparse24Kind: of each 4 values along the contraction a block keeps 2. All that kernels do with its pages.
#pragma once

#include "sparse_2_4/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "sparse_2_4/compress.h"
#include "sparse_2_4/decode.h"
#include "sparse_2_4/prefill.h"
#endif

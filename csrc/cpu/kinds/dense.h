// DenseKind: every value of a block is kept. All that kernels do with its pages.
#pragma once

#include "dense/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "dense/compress.h"
#include "dense/decode.h"
#include "dense/prefill.h"
#endif

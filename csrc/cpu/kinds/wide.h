// WideKind: every value of a block is kept, as fp16, in a cache of narrower elements. All that kernels do with its pages.
#pragma once

#include "wide/page.h"
#if defined(HSB_ISA)  // kernel sources, cpu/simd/isa.h
#include "wide/decode.h"
#include "wide/prefill.h"
#endif

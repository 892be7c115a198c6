// Wide pages in decode: dense ones of other values. Type: of the values of the pages beside them.
#pragma once

#include "../dense/decode.h"
#include "page.h"

namespace hsb::cpu {

template <class Isa, class Type, int heads>
void score_page(WideKind, const std::byte *page, int head_dim, const float *q, const float *tables, float *y,
                std::ptrdiff_t y_stride) {
    score_page<Isa, typename Type::Wide, heads>(DenseKind{}, page, head_dim, q, tables, y, y_stride);
}

template <class Isa, class Type, int heads>
void weigh_page(WideKind, const std::byte *page, int head_dim, const float *p, std::ptrdiff_t p_stride, float *tables,
                float *out) {
    weigh_page<Isa, typename Type::Wide, heads>(DenseKind{}, page, head_dim, p, p_stride, tables, out);
}

}  // namespace hsb::cpu

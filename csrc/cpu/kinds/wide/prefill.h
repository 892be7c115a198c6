// Wide pages as the operand A of prefill's products: what dense ones become. Type: of the values of the pages beside them.
#pragma once

#include "../dense/prefill.h"
#include "page.h"

namespace hsb::cpu::prefill {

constexpr hsb_block_kind unpacked_kind(WideKind) { return unpacked_kind(DenseKind{}); }

constexpr std::int64_t unpacked_bytes(WideKind, int head_dim) { return unpacked_bytes(DenseKind{}, head_dim); }

template <class Isa, class Type>
void unpack_page(WideKind, const std::byte *page, int rows, int steps, std::byte *unpacked) {
    unpack_page<Isa, typename Type::Wide>(DenseKind{}, page, rows, steps, unpacked);
}

}  // namespace hsb::cpu::prefill

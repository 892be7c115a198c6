// Tokens into the open page of a block of a cache that grows, and the block out of it. An open page is a dense one, or a
// wide one of narrow elements: the same tiles of 16 bits (cpu/page.h).
#pragma once

#include <cstdint>

#include "cpu/compress/compress.h"

namespace hsb::cpu {

// Stores x [tokens, head_dim] from row `row` of a page on, as compress would: less the shift, in units of the scale
// where there is one, in the page's order of channels. Returns the largest magnitude bits of x.
template <class Isa>
std::uint16_t write_tokens(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape, int row,
                           std::uint16_t *page);

// What a page holds, [64, head_dim] in the tensor's own order of channels and type, saturating; the shift stays taken
// off.
template <class Isa>
void read_tokens(const std::uint16_t *page, const BlockFit &fit, BlockShape shape, std::uint16_t *block);

}  // namespace hsb::cpu

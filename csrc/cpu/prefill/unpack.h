// Pages (cpu/page.h) to the operand A of prefill's products (products.h). Done once per page and unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/page_pool.h"
#include "products.h"

namespace hsb::cpu::prefill {

// Bytes that a page of any kind takes, unpacked.
constexpr std::size_t unpacked_bytes(int head_dim) {
    return static_cast<std::size_t>(most_of_kinds([=](auto kind) { return unpacked_bytes(kind, head_dim); }));
}

// Asks for part `part` of `parts` of a page, to be in L2 by the time it is unpacked.
inline void prefetch(const StoredPage &page, int part, int parts) {
    constexpr std::int64_t kLine = 64;
    const std::int64_t lines = page.bytes / kLine;
    for (std::int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line)
        __builtin_prefetch(page.data + line * kLine, 0, 2);
}

// The page of a map's entry; Type: of the tensor.
template <class Isa, class Type>
Matrix unpack(const hsb_pages &pages, std::int32_t entry, int rows, int steps, std::byte *out) {
    const StoredPage page = stored_page(pages, entry);
    return with_stored<Type>(pages.stored, [&](auto stored) {
        using Stored = decltype(stored);
        return with_kind<KindsOf<Stored>>(page.kind, [&](auto kind) {
            unpack_page<Isa, Stored>(kind, page.data, rows, steps, out);
            return Matrix{rows, steps, unpacked_kind(kind), out};
        });
    });
}

}  // namespace hsb::cpu::prefill

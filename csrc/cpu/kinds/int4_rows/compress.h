// Packs pages of int4 in rows, of 16-bit pages of the same blocks: those say what is kept.
#pragma once

#include "../int4/compress.h"
#include "page.h"

namespace hsb::cpu {

// The two head dims of a group that a mask of 4 bits keeps.
struct KeptDims {
    std::uint8_t dim[16][2];
};
constexpr KeptDims make_kept_dims() {
    KeptDims kept{};
    for (int mask = 0; mask < 16; ++mask)
        for (int i = 0, slot = 0; i < 4; ++i)
            if (mask >> i & 1 && slot < 2) kept.dim[mask][slot++] = static_cast<std::uint8_t>(i);
    return kept;
}
constexpr KeptDims kKeptDims = make_kept_dims();

// A token's 64 head dims, of two tiles of its 16-bit page: what is kept, in units, and masks of 4 bits.
template <class Isa>
struct Int4Row {
    static constexpr int kKept = Int4RowsKind::dims / 2;

    float value[kKept];
    std::uint8_t mask[Int4RowsKind::lanes];

    template <class Type>
    void read(const std::byte *tiles, int token, const float *inverse) {
        using Stored = Int4RowsKind::Stored;
        for (int i = 0; i < 2; ++i, tiles += Stored::tile_bytes, inverse += kTileLanes) {
            std::uint32_t bits;
            std::memcpy(&bits, tiles + token * 4, sizeof bits);
            const auto *stored =
                reinterpret_cast<const std::uint16_t *>(tiles + Stored::values_at) + token * Stored::kept;
            float unit[Stored::kept];
            for (int g = 0; g < kTileLanes / 4; ++g) {
                const int kept = bits >> 4 * g & 15;
                mask[i * kTileLanes / 4 + g] = static_cast<std::uint8_t>(kept);
                for (int slot = 0; slot < 2; ++slot) unit[2 * g + slot] = inverse[4 * g + kKeptDims.dim[kept][slot]];
            }
            for (int l = 0; l < Stored::kept; l += Isa::width)
                Isa::store(value + i * Stored::kept + l, Isa::mul(Isa::load(stored + l, Type{}), Isa::load(unit + l)));
        }
    }

    std::uint32_t largest() const {
        std::uint32_t most = 0;
        for (float x : value) most = std::max(most, bits_of(x) & 0x7fffffff);
        return most;
    }

    // At bits `at` of each lane's words.
    void write(float scale, int at, std::uint32_t *words) const {
        std::uint32_t digit[kKept];
        for (int i = 0; i < kKept; ++i) digit[i] = int4_digit(value[i], scale);
        for (int g = 0; g < Int4RowsKind::lanes; ++g) {
            const int lane = Int4RowsKind::group_of(g);
            words[lane] |= static_cast<std::uint32_t>(mask[g]) << at;
            for (int slot = 0; slot < 2; ++slot)
                words[(1 + slot) * Int4RowsKind::lanes + lane] |= digit[2 * g + slot] << at;
        }
    }
};

template <class Isa, class Type>
void quantise_page(Int4RowsKind, const std::byte *page, const float *inverse, int, int head_dim, std::byte *out) {
    auto *scales = reinterpret_cast<std::uint16_t *>(out);
    auto *words = reinterpret_cast<std::uint32_t *>(out + int4_scale_bytes(head_dim));
    std::memset(words, 0, static_cast<std::size_t>(Int4RowsKind::page_bytes(head_dim) - int4_scale_bytes(head_dim)));
    for (int dim = 0; dim < head_dim; dim += Int4RowsKind::dims) {
        const std::byte *tiles = page + dim / kTileLanes * Sparse24RowsKind::tile_bytes;
        for (int token = 0; token < kBlock; ++token, ++scales) {
            Int4Row<Isa> row;
            row.template read<Type>(tiles, token, inverse + dim);
            *scales = int4_scale(row.largest());
            const int digit = token % kWordDigits;
            row.write(to_float(*scales, Int4::Scale{}), 16 * (digit % 2) + digit / 2 * 4,
                      words + token / kWordDigits * Int4RowsKind::words);
        }
        words += Int4RowsKind::row_bytes / 4;
    }
}

}  // namespace hsb::cpu

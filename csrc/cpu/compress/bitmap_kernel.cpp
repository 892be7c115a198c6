#include "bitmap.h"

#include "lanes.h"

namespace hsb::cpu {
namespace {

// `rows` tokens at once: a search is one chain of dependent steps, so several of them share the pipeline.
//
// The threshold, the keep-th largest magnitude, is built from its top bit down: a bit stays if at least `keep`
// magnitudes reach the candidate. What exceeds it is kept, and of what equals it the lowest indices.
template <class Isa, int chunks, int rows>
std::uint16_t find_rows(const std::uint16_t *x, int keep, std::uint64_t *bitmap) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
    constexpr int parts = kChunk / L::width;
    Half m[rows][chunks][parts];
    Half largest = L::zero();
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < chunks; ++c)
            for (int i = 0; i < parts; ++i) {
                m[r][c][i] = L::bit_and(L::load(x + (r * chunks + c) * kChunk + i * L::width), L::set(0x7fff));
                largest = L::max(largest, m[r][c][i]);
            }
    unsigned threshold[rows] = {};
    for (unsigned bit = 1u << 14; bit; bit >>= 1)
        for (int r = 0; r < rows; ++r) {
            const auto candidate = static_cast<std::uint16_t>(threshold[r] | bit);
            int count = 0;
            for (int c = 0; c < chunks; ++c) count += L::count_at_least(m[r][c], candidate);
            threshold[r] = count >= keep ? candidate : threshold[r];
        }
    for (int r = 0; r < rows; ++r) {
        std::uint64_t above[chunks];
        int missing = keep;
        for (int c = 0; c < chunks; ++c) {
            above[c] = L::at_least(m[r][c], static_cast<std::uint16_t>(threshold[r] + 1));
            missing -= __builtin_popcountll(above[c]);
        }
        for (int c = 0; c < chunks; ++c) {
            const std::uint64_t equal = L::at_least(m[r][c], static_cast<std::uint16_t>(threshold[r])) & ~above[c];
            const std::uint64_t taken = L::lowest(equal, missing < kChunk ? missing : kChunk);
            missing -= __builtin_popcountll(taken);
            bitmap[r * chunks + c] = above[c] | taken;
        }
    }
    return L::largest(largest);
}

template <class Isa, int chunks>
std::uint16_t find_bitmaps_of(const std::uint16_t *x, std::int64_t rows, int keep, std::uint64_t *bitmap) {
    constexpr int together = Isa::registers >= 32 ? 4 : 2;  // 4 rows of 128 fill half of AVX-512's registers
    std::uint16_t largest = 0;
    std::int64_t row = 0;
    const auto note = [&](std::uint16_t seen) { largest = seen > largest ? seen : largest; };
    for (; row + together <= rows; row += together)
        note(find_rows<Isa, chunks, together>(x + row * chunks * kChunk, keep, bitmap + row * chunks));
    for (; row < rows; ++row) note(find_rows<Isa, chunks, 1>(x + row * chunks * kChunk, keep, bitmap + row * chunks));
    return largest;
}

}  // namespace

template <class Isa>
std::uint16_t find_bitmaps(const std::uint16_t *x, std::int64_t rows, int head_dim, int keep, std::uint64_t *bitmap) {
    return head_dim == kChunk ? find_bitmaps_of<Isa, 1>(x, rows, keep, bitmap)
                              : find_bitmaps_of<Isa, 2>(x, rows, keep, bitmap);
}

template <class Isa>
std::uint16_t gather_values(const std::uint16_t *x, std::int64_t chunks, const std::uint64_t *bitmap,
                            std::uint16_t *values, const std::uint16_t *end) {
    using L = Lanes<Isa>;
    typename L::Half largest = L::zero();
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk, x += kChunk) {
        for (int i = 0; i < kChunk; i += L::width)
            largest = L::max(largest, L::bit_and(L::load(x + i), L::set(0x7fff)));
        const int padded = (__builtin_popcountll(bitmap[chunk]) + kPad - 1) / kPad * kPad;
        L::gather_bits(x, bitmap[chunk], values, padded, end);
        values += padded;
    }
    return L::largest(largest);
}

template std::uint16_t find_bitmaps<Isa>(const std::uint16_t *, std::int64_t, int, int, std::uint64_t *);
template std::uint16_t gather_values<Isa>(const std::uint16_t *, std::int64_t, const std::uint64_t *, std::uint16_t *,
                                          const std::uint16_t *);

}  // namespace hsb::cpu

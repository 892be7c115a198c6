#include "norms.h"

#include "cpu/compress/stored.h"
#include "cpu/simd/isa.h"

namespace hsb::cpu {
namespace {

// The sum of y[0 .. n), by halves. Loops of a known length, which compilers vectorise.
template <int n>
[[gnu::always_inline]] inline double sum_by_halves(double *y) {
    if constexpr (n == 1) {
        return y[0];
    } else {
        for (int c = 0; c < n / 2; ++c) y[c] += y[c + n / 2];
        return sum_by_halves<n / 2>(y);
    }
}

template <class Isa, class Type, int head_dim>
void find_token_norms_of(const std::uint16_t *x, std::int64_t tokens, const float *shift, double *squares,
                         std::uint16_t *largest) {
    alignas(64) std::uint16_t stored[head_dim];
    alignas(64) float wide[head_dim];
    alignas(64) double y[head_dim];
    for (std::int64_t token = 0; token < tokens; ++token, x += head_dim) {
        store_row<Isa, Type>(x, shift, head_dim, stored);
        for (int c = 0; c < head_dim; c += Isa::width) Isa::store(wide + c, Isa::load(stored + c, Type{}));
        for (int c = 0; c < head_dim; ++c) y[c] = static_cast<double>(wide[c]) * static_cast<double>(wide[c]);
        squares[token] = sum_by_halves<head_dim>(y);
        std::uint16_t most = 0;
        for (const std::uint16_t value : stored) {
            const auto magnitude = static_cast<std::uint16_t>(value & 0x7fff);
            most = magnitude > most ? magnitude : most;
        }
        largest[token] = most;
    }
}

}  // namespace

template <class Isa>
void find_token_norms(const std::uint16_t *x, std::int64_t tokens, int head_dim, int dtype, const float *shift,
                      double *squares, std::uint16_t *largest) {
    with_type(dtype, [&](auto type) {
        using Type = decltype(type);
        if (head_dim == 64)
            find_token_norms_of<Isa, Type, 64>(x, tokens, shift, squares, largest);
        else
            find_token_norms_of<Isa, Type, 128>(x, tokens, shift, squares, largest);
    });
}

template void find_token_norms<Isa>(const std::uint16_t *, std::int64_t, int, int, const float *, double *,
                                    std::uint16_t *);

}  // namespace hsb::cpu

#include "mean.h"

#include "cpu/simd/isa.h"

namespace hsb::cpu {

template <class Isa>
void add_tokens(const std::uint16_t *x, std::int64_t tokens, int head_dim, int dtype, double *sums) {
    with_type(dtype, [&](auto type) {
        alignas(64) float wide[128];
        alignas(64) double own[128] = {};
        for (std::int64_t token = 0; token < tokens; ++token, x += head_dim) {
            for (int c = 0; c < head_dim; c += Isa::width) Isa::store(wide + c, Isa::load(x + c, type));
            for (int c = 0; c < 64; ++c) own[c] += static_cast<double>(wide[c]);
            if (head_dim == 64) continue;
            for (int c = 64; c < 128; ++c) own[c] += static_cast<double>(wide[c]);
        }
        for (int c = 0; c < head_dim; ++c) sums[c] = own[c];
    });
}

template void add_tokens<Isa>(const std::uint16_t *, std::int64_t, int, int, double *);

}  // namespace hsb::cpu

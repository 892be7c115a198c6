#include "append.h"

#include <cstring>

#include "cpu/compress/lanes.h"
#include "cpu/compress/stored.h"
#include "cpu/compress/strip.h"
#include "cpu/fit.h"
#include "cpu/page.h"

namespace hsb::cpu {
namespace {

using Wide = E4m3::Wide::Stored;  // of all narrow elements

// Rows of From times the channels' factors, as a type To.
template <class Isa, class From, class To>
void scale_row(const std::uint16_t *from, const float *factor, int head_dim, std::uint16_t *to) {
    const float bound = to_float(infinity_bits(To::dtype) - 1, To{});
    const auto most = Isa::set(bound), least = Isa::set(-bound);
    for (int c = 0; c < head_dim; c += Isa::width) {
        const auto x = Isa::mul(Isa::load(from + c, From{}), Isa::load(factor + c));
        Isa::store(to + c, Isa::max(least, Isa::min(most, x)), To{});
    }
}

// Where a token's first channel stands in a page of K, whose next ones are kTileLanes apart.
std::int64_t key_at(int token, int head_dim) { return token / kTileLanes * head_dim * kTileLanes + token % kTileLanes; }

// Where a token's run of kTileLanes channels stands in a page of V.
std::int64_t value_at(int token, int channel) { return channel * kTileSteps + token * kTileLanes; }

template <class Isa, class Type>
std::uint16_t write_tokens_of(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape, int row,
                              std::uint16_t *page) {
    using L = Lanes<Isa>;
    const int head_dim = shape.head_dim;
    alignas(64) std::uint16_t own[128];
    alignas(64) float inverse[128];  // of powers of 2
    for (int c = 0; fit.scale && c < head_dim; ++c) inverse[c] = 1.0f / fit.scale[c];
    typename L::Half largest = L::zero();
    for (int token = row; token < row + tokens; ++token, x += head_dim) {
        for (int c = 0; c < head_dim; c += L::width)
            largest = L::max(largest, L::bit_and(L::load(x + c), L::set(kMagnitude)));
        store_row<Isa, Type>(x, fit.shift, head_dim, own);
        if (fit.scale) scale_row<Isa, Type, Wide>(own, inverse, head_dim, own);
        if (shape.operand == HSB_VALUE) {
            for (int c = 0; c < head_dim; c += kTileLanes)
                std::memcpy(page + value_at(token, c), own + c, kTileLanes * sizeof(std::uint16_t));
            continue;
        }
        std::uint16_t *const to = page + key_at(token, head_dim);
        const auto put = [&](int place, int channel) { to[place * kTileLanes] = own[channel]; };
        if (fit.order == HSB_ORDER_MIRROR)
            for_each_mirrored(head_dim, put);
        else
            for (int c = 0; c < head_dim; ++c) put(c, c);
    }
    return L::largest(largest);
}

template <class Isa, class Type>
void read_tokens_of(const std::uint16_t *page, const BlockFit &fit, BlockShape shape, std::uint16_t *block) {
    const int head_dim = shape.head_dim;
    for (int token = 0; token < kBlock; ++token, block += head_dim) {
        if (shape.operand == HSB_VALUE) {
            for (int c = 0; c < head_dim; c += kTileLanes)
                std::memcpy(block + c, page + value_at(token, c), kTileLanes * sizeof(std::uint16_t));
        } else {
            const std::uint16_t *const from = page + key_at(token, head_dim);
            const auto take = [&](int place, int channel) { block[channel] = from[place * kTileLanes]; };
            if (fit.order == HSB_ORDER_MIRROR)
                for_each_mirrored(head_dim, take);
            else
                for (int c = 0; c < head_dim; ++c) take(c, c);
        }
        if (fit.scale) scale_row<Isa, Wide, Type>(block, fit.scale, head_dim, block);
    }
}

}  // namespace

template <class Isa>
std::uint16_t write_tokens(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape, int row,
                           std::uint16_t *page) {
    return with_type(shape.dtype,
                     [&](auto type) { return write_tokens_of<Isa, decltype(type)>(x, tokens, fit, shape, row, page); });
}

template <class Isa>
void read_tokens(const std::uint16_t *page, const BlockFit &fit, BlockShape shape, std::uint16_t *block) {
    with_type(shape.dtype, [&](auto type) { read_tokens_of<Isa, decltype(type)>(page, fit, shape, block); });
}

template std::uint16_t write_tokens<Isa>(const std::uint16_t *, int, const BlockFit &, BlockShape, int,
                                         std::uint16_t *);
template void read_tokens<Isa>(const std::uint16_t *, const BlockFit &, BlockShape, std::uint16_t *);

}  // namespace hsb::cpu

#include "compress.h"

#include <cstring>

#include "cpu/block_kinds.h"
#include "cpu/fit.h"
#include "lanes.h"
#include "stored.h"
#include "strip.h"

namespace hsb::cpu {
namespace {

// The two smallest of four, as values.
template <class Isa, class Type>
struct Dropped {
    using L = Lanes<Isa>;
    using Half = typename L::Half;

    typename L::template Sum<Type> sum;
    Half below = L::set(0xffff);  // smallest magnitude - 1, so that zeros wrap round to the top
    Half largest = L::zero();

    void add(const Half (&x)[4]) {
        Half m[4];
        for (int i = 0; i < 4; ++i) m[i] = L::bit_and(x[i], L::set(kMagnitude));
        const Half low01 = L::min(m[0], m[1]), high01 = L::max(m[0], m[1]);
        const Half low23 = L::min(m[2], m[3]), high23 = L::max(m[2], m[3]);
        const Half first = L::min(low01, low23);
        const Half second = L::min(L::max(low01, low23), L::min(high01, high23));
        sum.add(first);
        sum.add(second);
        if (!is_always_exact(Type::dtype)) {
            const Half one = L::set(1);
            below = L::min(below, L::min(L::sub(first, one), L::sub(second, one)));
            largest = L::max(largest, second);
        }
    }
    DroppedSum result() const {
        const std::uint16_t smallest = L::smallest(below);
        return {sum.total(), static_cast<std::uint16_t>(smallest == 0xffff ? smallest : smallest + 1),
                L::largest(largest)};
    }
};

template <class Isa, class Type>
DroppedSum sum_dropped_of(const std::uint16_t *block, int head_dim, int operand) {
    using L = Lanes<Isa>;
    Dropped<Isa, Type> dropped;
    typename L::Half x[4];
    if (operand == HSB_KEY) {  // the order of lanes is free: no transpose, groups are successive elements
        for (int i = 0; i < kBlock * head_dim; i += 4 * L::width) {
            L::grouped(block + i, x);
            dropped.add(x);
        }
    } else {
        for (int token = 0; token < kBlock; token += 4)
            for (int lane = 0; lane < head_dim; lane += L::width) {
                for (int i = 0; i < 4; ++i) x[i] = L::load(block + (token + i) * head_dim + lane);
                dropped.add(x);
            }
    }
    return dropped.result();
}

// Calls function(Kind{}) of the kinds that the block's pages have.
template <class Function>
[[gnu::always_inline]] inline decltype(auto) with_kind_along(hsb_block_kind kind, BlockShape shape,
                                                             Function &&function) {
    if (shape.axis == HSB_AXIS_HEAD_DIM) return with_kind<HeadDimKinds>(kind, function);
    return with_kind(kind, function);
}

// A function for each kind: with all of them in one, GCC vectorises worse.
template <class Isa, class Kind>
[[gnu::noinline]] std::uint16_t pack_page_of(Kind kind, const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return shape.operand == HSB_KEY ? pack_page<Isa, HSB_KEY>(kind, block, page, shape.head_dim)
                                    : pack_page<Isa, HSB_VALUE>(kind, block, page, shape.head_dim);
}

template <class Isa, class Type, class Kind>
[[gnu::noinline]] void pack_chosen_page_of(Kind kind, const std::uint16_t *stored, const std::uint16_t *scores,
                                           float fold, std::byte *page, BlockShape shape) {
    if (shape.operand == HSB_KEY)
        pack_chosen_page<Isa, Type, HSB_KEY>(kind, stored, scores, fold, page, shape.head_dim);
    else
        pack_chosen_page<Isa, Type, HSB_VALUE>(kind, stored, scores, fold, page, shape.head_dim);
}

void mirror(const std::uint16_t *from, std::uint16_t *to, int head_dim) {
    for_each_mirrored(head_dim, [&](int place, int channel) { to[place] = from[channel]; });
}

// Row by row, in the tensor's own order of channels as long as there is something to compute.
template <class Isa, class Type>
std::uint16_t store_block_of(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape,
                             std::uint16_t *stored, std::uint16_t *scores) {
    using L = Lanes<Isa>;
    constexpr Type type{};
    const int head_dim = shape.head_dim;
    const bool mirrors = fit.order == HSB_ORDER_MIRROR;
    alignas(64) std::uint16_t row[128], scored_row[128];
    alignas(64) float channel_weights[128];
    if (scores && shape.operand == HSB_KEY)
        for (int c = 0; c < head_dim; c += Isa::width)
            Isa::store(channel_weights + c, Isa::load(fit.weights + c, type));
    typename L::Half largest = L::zero();
    for (int token = 0; token < tokens; ++token, x += head_dim, stored += head_dim) {
        for (int c = 0; c < head_dim; c += L::width)
            largest = L::max(largest, L::bit_and(L::load(x + c), L::set(kMagnitude)));
        std::uint16_t *const own = mirrors ? row : stored;
        store_row<Isa, Type>(x, fit.shift, head_dim, own);
        if (mirrors) mirror(row, stored, head_dim);
        if (!scores) continue;
        std::uint16_t *const score = mirrors ? scored_row : scores;
        const auto token_weight = Isa::set(shape.operand == HSB_KEY ? 0.0f : to_float(fit.weights[token], type));
        for (int c = 0; c < head_dim; c += Isa::width) {
            const auto weight = shape.operand == HSB_KEY ? Isa::load(channel_weights + c) : token_weight;
            Isa::store(score + c, Isa::mul(Isa::load(own + c, type), weight), type);
        }
        if (mirrors) mirror(scored_row, scores, head_dim);
        scores += head_dim;
    }
    std::memset(stored, 0, static_cast<std::size_t>(kBlock - tokens) * head_dim * 2);
    return L::largest(largest);
}

// Powers of 2, as the scales are.
void invert(const float *scale, int count, float *inverse) {
    for (int i = 0; i < count; ++i) inverse[i] = 1.0f / scale[i];
}

// Of a block's scales, in the order of the channels in its page: inverse [128].
void invert_in_order(const BlockFit &fit, int head_dim, float *inverse) {
    float own[128];
    invert(fit.scale, head_dim, own);
    if (fit.order == HSB_ORDER_MIRROR)
        for_each_mirrored(head_dim, [&](int place, int channel) { inverse[place] = own[channel]; });
    else
        std::memcpy(inverse, own, static_cast<std::size_t>(head_dim) * sizeof(float));
}

template <class Isa, class Type, class To>
void scale_block_of(const std::uint16_t *stored, const BlockFit &fit, BlockShape shape, std::uint16_t *units) {
    const int head_dim = shape.head_dim;
    alignas(64) float inverse[128];
    invert_in_order(fit, head_dim, inverse);
    const float bound = to_float(infinity_bits(To::dtype) - 1, To{});
    const auto most = Isa::set(bound), least = Isa::set(-bound);
    for (int token = 0; token < kBlock; ++token, stored += head_dim, units += head_dim)
        for (int c = 0; c < head_dim; c += Isa::width) {
            const auto x = Isa::mul(Isa::load(stored + c, Type{}), Isa::load(inverse + c));
            Isa::store(units + c, Isa::max(least, Isa::min(most, x)), To{});
        }
}

template <class Isa, class Type, class Kind>
void narrow_page_of(Kind, const std::byte *page, const BlockFit &fit, BlockShape shape, std::byte *narrow) {
    constexpr std::int64_t kValues = (Kind::tile_bytes - Kind::values_at) / 2;
    static_assert(kValues % kTileLanes == 0 && kTileLanes % Isa::width == 0, "rows of lanes");
    alignas(64) float inverse[kTileLanes], x[kTileLanes];
    for (int lane = 0; lane < kTileLanes; ++lane) inverse[lane] = 1.0f;
    for (int tile = 0; tile < tiles_per_page(shape.head_dim); ++tile) {
        const std::byte *from = page + tile * Kind::tile_bytes;
        std::byte *to = narrow + tile * Kind::tile_bytes_of(1);
        std::memcpy(to, from, Kind::values_at);
        // V: lanes are channels, and a tile has all tokens.
        if (shape.of_groups().operand == HSB_VALUE) invert(fit.scale + tile * kTileLanes, kTileLanes, inverse);
        const auto *values = reinterpret_cast<const std::uint16_t *>(from + Kind::values_at);
        auto *bytes = reinterpret_cast<std::uint8_t *>(to + Kind::values_at);
        for (std::int64_t i = 0; i < kValues; i += kTileLanes) {
            for (int lane = 0; lane < kTileLanes; lane += Isa::width)
                Isa::store(x + lane, Isa::mul(Isa::load(values + i + lane, Type{}), Isa::load(inverse + lane)));
            for (int lane = 0; lane < kTileLanes; ++lane) bytes[i + lane] = from_float(x[lane], E4m3{});
        }
    }
}

// A function for each kind, as above.
template <class Isa, class Type, class Kind>
[[gnu::noinline]] void quantise_page_of(Kind kind, const std::byte *page, const BlockFit &fit, BlockShape shape,
                                        std::byte *out) {
    alignas(64) float inverse[128];
    invert_in_order(fit, shape.head_dim, inverse);
    quantise_page<Isa, Type>(kind, page, inverse, shape.operand, shape.head_dim, out);
}

}  // namespace

template <class Isa>
DroppedSum sum_dropped(const std::uint16_t *block, BlockShape shape) {
    return with_type(shape.dtype, [&](auto type) {
        return sum_dropped_of<Isa, decltype(type)>(block, shape.head_dim, shape.of_groups().operand);
    });
}

template <class Isa>
std::uint16_t pack_page(hsb_block_kind kind, const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return with_kind_along(kind, shape, [&](auto of_kind) { return pack_page_of<Isa>(of_kind, block, page, shape); });
}

template <class Isa>
std::uint16_t store_block(const std::uint16_t *x, int tokens, const BlockFit &fit, BlockShape shape,
                          std::uint16_t *stored, std::uint16_t *scores) {
    return with_type(shape.dtype, [&](auto type) {
        return store_block_of<Isa, decltype(type)>(x, tokens, fit, shape, stored, scores);
    });
}

template <class Isa>
void pack_chosen_page(hsb_block_kind kind, const std::uint16_t *stored, const std::uint16_t *scores, float fold,
                      std::byte *page, BlockShape shape) {
    with_type(shape.dtype, [&](auto type) {
        with_kind_along(kind, shape, [&](auto of_kind) {
            pack_chosen_page_of<Isa, decltype(type)>(of_kind, stored, scores, fold, page, shape);
        });
    });
}

template <class Isa>
void scale_block(const std::uint16_t *stored, const BlockFit &fit, BlockShape shape, std::uint16_t *units) {
    with_type(shape.dtype,
              [&](auto type) { scale_block_of<Isa, decltype(type), decltype(type)>(stored, fit, shape, units); });
}

template <class Isa>
void widen_block(const std::uint16_t *stored, const BlockFit &fit, BlockShape shape, std::uint16_t *units) {
    with_type(shape.dtype,
              [&](auto type) { scale_block_of<Isa, decltype(type), E4m3::Wide::Stored>(stored, fit, shape, units); });
}

template <class Isa>
void narrow_page(hsb_block_kind kind, const std::byte *page, const BlockFit &fit, BlockShape shape, std::byte *narrow) {
    with_type(shape.dtype, [&](auto type) {
        with_kind_along(kind, shape,
                        [&](auto of_kind) { narrow_page_of<Isa, decltype(type)>(of_kind, page, fit, shape, narrow); });
    });
}

template <class Isa>
void quantise_page(hsb_block_kind kind, const std::byte *page, const BlockFit &fit, BlockShape shape, std::byte *out) {
    with_type(shape.dtype, [&](auto type) {
        const auto quantise = [&](auto of_kind) {
            quantise_page_of<Isa, decltype(type)>(of_kind, page, fit, shape, out);
        };
        if (shape.axis == HSB_AXIS_HEAD_DIM) return with_kind<QuantisedHeadDimKinds>(kind, quantise);
        with_kind<QuantisedKinds>(kind, quantise);
    });
}

template DroppedSum sum_dropped<Isa>(const std::uint16_t *, BlockShape);
template std::uint16_t pack_page<Isa>(hsb_block_kind, const std::uint16_t *, std::byte *, BlockShape);
template std::uint16_t store_block<Isa>(const std::uint16_t *, int, const BlockFit &, BlockShape, std::uint16_t *,
                                        std::uint16_t *);
template void pack_chosen_page<Isa>(hsb_block_kind, const std::uint16_t *, const std::uint16_t *, float, std::byte *,
                                    BlockShape);
template void scale_block<Isa>(const std::uint16_t *, const BlockFit &, BlockShape, std::uint16_t *);
template void widen_block<Isa>(const std::uint16_t *, const BlockFit &, BlockShape, std::uint16_t *);
template void narrow_page<Isa>(hsb_block_kind, const std::byte *, const BlockFit &, BlockShape, std::byte *);
template void quantise_page<Isa>(hsb_block_kind, const std::byte *, const BlockFit &, BlockShape, std::byte *);

}  // namespace hsb::cpu

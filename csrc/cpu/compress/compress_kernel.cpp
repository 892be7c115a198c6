#include "compress.h"

#include "cpu/page.h"
#include "lanes.h"

namespace hsb::cpu {
namespace {

constexpr std::uint16_t kMagnitude = 0x7fff;

// A run of `width` lanes of a tile, from which successive steps of c are read.
//
//   K [token, head dim]: lane = row, c = column; needs a transpose      V [token, head dim]: lane = column, c = row
template <class Isa, int operand>
struct Strip {
    const std::uint16_t *first;  // lane 0, step 0
    int head_dim;

    static Strip at(const std::uint16_t *block, int head_dim, int lane, int step) {
        return {block + (operand == HSB_KEY ? lane * head_dim + step : step * head_dim + lane), head_dim};
    }
    void load(int step, typename Lanes<Isa>::Half (&x)[8]) const {
        if (operand == HSB_KEY) {
            Lanes<Isa>::transposed(first + step, head_dim, x);
        } else {
            for (int i = 0; i < 8; ++i) x[i] = Lanes<Isa>::load(first + (step + i) * head_dim);
        }
    }
};

// Fetches the block that follows while this one is worked on: tiles are columns of a block, which hardware prefetchers
// follow badly (2.5 times slower without). Past the tensor's end a prefetch does nothing.
class Ahead {
public:
    Ahead(const std::uint16_t *block, int head_dim)
        : next_(reinterpret_cast<const char *>(block + kBlock * head_dim)) {}

    template <int bytes>
    void fetch() {
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(next_ + i);
        next_ += bytes;
    }

private:
    const char *next_;
};

// Calls visit(lane, step, tile) for each tile of a page in storage order: lane tile outer, c tile inner.
template <int operand, class Visit>
void for_each_tile(int head_dim, Visit &&visit) {
    const int lanes = operand == HSB_KEY ? kBlock : head_dim;
    const int steps = operand == HSB_KEY ? head_dim : kBlock;
    int tile = 0;
    for (int lane = 0; lane < lanes; lane += kTileLanes)
        for (int step = 0; step < steps; step += kTileSteps) visit(lane, step, tile++);
}

// ---- The two smallest of four, as values ---------------------------------------------------------------------------
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

// ---- Packing -------------------------------------------------------------------------------------------------------
template <class Isa, int operand>
std::uint16_t pack_dense_of(const std::uint16_t *block, std::byte *page, int head_dim) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
    Half largest = L::zero();
    Ahead ahead(block, head_dim);
    for_each_tile<operand>(head_dim, [&](int lane0, int step0, int tile) {
        auto *out = reinterpret_cast<std::uint16_t *>(page + tile * kDenseTileBytes);
        for (int lane = 0; lane < kTileLanes; lane += L::width) {
            const auto strip = Strip<Isa, operand>::at(block, head_dim, lane0 + lane, step0);
            for (int step = 0; step < kTileSteps; step += 8) {
                Half x[8];
                strip.load(step, x);
                ahead.template fetch<sizeof x>();
                for (int i = 0; i < 8; ++i) {
                    L::store(out + (step + i) * kTileLanes + lane, x[i]);
                    largest = L::max(largest, L::bit_and(x[i], L::set(kMagnitude)));
                }
            }
        }
    });
    return L::largest(largest);
}

// Prunes one group: slots[0], slots[1] are the two values kept, in order. Their pattern goes into `codes`.
//
// The code of a pattern (page.h) is 4 d0 + 2 d1 + d2 - 1, with d_i = 1 where element i is dropped; so three bits
// shifted in from the top are a code plus one.
template <class Isa>
void prune_group(const typename Lanes<Isa>::Half *x, typename Lanes<Isa>::Half (&slots)[2],
                 typename Lanes<Isa>::Half &codes, typename Lanes<Isa>::Half &largest) {
    using L = Lanes<Isa>;
    typename L::Half m[4];
    for (int i = 0; i < 4; ++i) m[i] = L::bit_and(x[i], L::set(kMagnitude));
    largest = L::max(largest, L::max(L::max(m[0], m[1]), L::max(m[2], m[3])));
    // b_ij: j beats i. Of equal ones, i does: the lower index.
    const auto b01 = L::less(m[0], m[1]), b02 = L::less(m[0], m[2]), b03 = L::less(m[0], m[3]);
    const auto b12 = L::less(m[1], m[2]), b13 = L::less(m[1], m[3]), b23 = L::less(m[2], m[3]);
    // Dropped: beaten by two of the three others.
    const auto d0 = L::majority(b01, b02, b03), d1 = L::majority_n1(b01, b12, b13);
    const auto d2 = L::majority_n2(b02, b12, b23), d3 = L::majority_n3(b03, b13, b23);
    codes = L::shift_in(L::shift_in(L::shift_in(codes, d2), d1), d0);
    slots[0] = L::select(L::mask(d0), L::select(L::mask(d1), x[2], x[1]), x[0]);
    slots[1] = L::select(L::mask(d3), L::select(L::mask(d2), x[1], x[2]), x[3]);
}

// Codes of five groups per half word: 0..4, 5..9, 10..14; and 15 by itself.
struct TileCodes {
    std::uint16_t part[4][kTileLanes];

    void write(std::byte *tile) const {
        auto *low = reinterpret_cast<std::uint32_t *>(tile);
        auto *high = reinterpret_cast<std::uint16_t *>(tile + kHighPatterns);
        for (int lane = 0; lane < kTileLanes; ++lane)
            low[lane] = part[0][lane] | static_cast<std::uint32_t>(part[1][lane]) << 15 |
                        static_cast<std::uint32_t>(part[3][lane]) << 30;
        constexpr int half = kTileLanes / 2;
        for (int lane = 0; lane < half; ++lane)
            for (int h = 0; h < 2; ++h)
                high[2 * lane + h] =
                    static_cast<std::uint16_t>(part[2][half * h + lane] | part[3][half * h + lane] >> 2 << 15);
    }
};

template <class Isa, int operand>
std::uint16_t pack_sparse_of(const std::uint16_t *block, std::byte *page, int head_dim) {
    using L = Lanes<Isa>;
    using Half = typename L::Half;
    Half largest = L::zero();
    Ahead ahead(block, head_dim);
    for_each_tile<operand>(head_dim, [&](int lane0, int step0, int tile) {
        std::byte *out = page + tile * kSparseTileBytes;
        auto *values = reinterpret_cast<std::uint16_t *>(out + kPatternBytes);
        TileCodes codes;
        for (int lane = 0; lane < kTileLanes; lane += L::width) {
            const auto strip = Strip<Isa, operand>::at(block, head_dim, lane0 + lane, step0);
            Half bits = L::zero();
            for (int group = 0; group < kTileGroups; group += 2) {
                Half x[8];
                strip.load(4 * group, x);
                ahead.template fetch<sizeof x>();
                for (int i = 0; i < 2; ++i) {
                    const int g = group + i;
                    Half slots[2];
                    prune_group<Isa>(x + 4 * i, slots, bits, largest);
                    L::store(values + 2 * g * kTileLanes + lane, slots[0]);
                    L::store(values + (2 * g + 1) * kTileLanes + lane, slots[1]);
                    if (g == kTileGroups - 1) {
                        L::store(codes.part[3] + lane, L::sub(L::shift_right(bits, 13), L::set(1)));
                    } else if (g % 5 == 4) {  // 15 bits are in; each code is one too large
                        L::store(codes.part[g / 5] + lane, L::sub(L::shift_right(bits, 1), L::set(011111)));
                        bits = L::zero();
                    }
                }
            }
        }
        codes.write(out);
    });
    return L::largest(largest);
}

}  // namespace

template <class Isa>
DroppedSum sum_dropped(const std::uint16_t *block, BlockShape shape) {
    return with_type(shape.dtype, [&](auto type) {
        return sum_dropped_of<Isa, decltype(type)>(block, shape.head_dim, shape.operand);
    });
}

template <class Isa>
std::uint16_t pack_dense(const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return shape.operand == HSB_KEY ? pack_dense_of<Isa, HSB_KEY>(block, page, shape.head_dim)
                                    : pack_dense_of<Isa, HSB_VALUE>(block, page, shape.head_dim);
}

template <class Isa>
std::uint16_t pack_sparse(const std::uint16_t *block, std::byte *page, BlockShape shape) {
    return shape.operand == HSB_KEY ? pack_sparse_of<Isa, HSB_KEY>(block, page, shape.head_dim)
                                    : pack_sparse_of<Isa, HSB_VALUE>(block, page, shape.head_dim);
}

template DroppedSum sum_dropped<Isa>(const std::uint16_t *, BlockShape);
template std::uint16_t pack_dense<Isa>(const std::uint16_t *, std::byte *, BlockShape);
template std::uint16_t pack_sparse<Isa>(const std::uint16_t *, std::byte *, BlockShape);

}  // namespace hsb::cpu

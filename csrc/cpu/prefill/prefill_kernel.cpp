#include "prefill.h"

#include <math.h>

#include <algorithm>

#include "attention_shape.h"
#include "cpu/fit.h"
#include "cpu/simd/isa.h"
#include "products.h"
#include "softmax.h"
#include "unpack.h"

namespace hsb::cpu::prefill {
namespace {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where things lie in a thread's scratch: what all tiles share, then the tiles.
template <class Isa>
struct Scratch {
    static constexpr std::size_t row = Tile<Isa>::row_bytes;

    explicit Scratch(int head_dim, std::byte *base = nullptr)
        : base(base), k(0), v(k + unpacked_bytes(head_dim)), scores(v + unpacked_bytes(head_dim)),
          line(scores + aligned(kBlock * row)), shared(line + aligned(head_dim * sizeof(float))),
          matrix(aligned(head_dim * row)), tile(2 * matrix + 3 * aligned(row)) {}

    float *at(std::size_t offset) const { return reinterpret_cast<float *>(base + offset); }
    float *queries(int t) const { return at(shared + t * tile); }                 // [head_dim][lanes], scaled
    float *output(int t) const { return at(shared + t * tile + matrix); }         // [head_dim][lanes], not yet divided
    float *reference(int t) const { return at(shared + t * tile + 2 * matrix); }  // [lanes]
    float *sum(int t) const { return at(shared + t * tile + 2 * matrix + aligned(row)); }  // [lanes]
    // [lanes]: the last token that a lane's query sees, counted from the last token of the tile's first query.
    float *last(int t) const { return at(shared + t * tile + 2 * matrix + 2 * aligned(row)); }

    std::byte *base;
    std::size_t k, v;    // unpacked pages
    std::size_t scores;  // [64][lanes]
    std::size_t line;    // [head_dim]
    std::size_t shared;
    std::size_t matrix;
    std::size_t tile;  // bytes of one
};

// Rows of one (batch, kv head), where they lie in q, out and lse, and what they see.
struct Rows {
    Rows(const hsb_prefill_params &p, std::int64_t head)
        : p(p), kv_head(head), group(p.q_heads / p.kv_heads), first_head(head * group), rows(p.q_len * group),
          length(p.lengths ? p.lengths[head / p.kv_heads] : p.seq),
          queries(p.lengths && p.q_lengths ? p.q_lengths[head / p.kv_heads] : p.q_len),
          blocks(stored_blocks(p, kBlock)), position(p.position ? p.position + head * blocks : nullptr) {}

    std::int64_t query(std::int64_t row) const { return row / group; }
    // [batch, q_heads, q_len] flat
    std::int64_t index(std::int64_t row) const { return (first_head + row % group) * p.q_len + row / group; }
    std::int64_t last_token(std::int64_t row) const { return length - queries + row / group; }
    // Rows of queries that there are: the first ones.
    std::int64_t there() const { return queries * group; }

    // The first token of a stored block.
    std::int64_t start(std::int64_t stored) const { return (position ? position[stored] : stored) * kBlock; }
    // Stored blocks that begin at or before a token.
    std::int64_t blocks_until(std::int64_t token) const {
        const std::int64_t seen = token < 0 ? 0 : token / kBlock + 1;
        return position ? std::upper_bound(position, position + blocks, seen - 1) - position : seen;
    }
    // Whether there is no such query, or all that it may see is evicted.
    bool sees_nothing(std::int64_t row) const { return row >= there() || last_token(row) < start(0); }

    const hsb_prefill_params &p;
    std::int64_t kv_head, group, first_head, rows;
    std::int64_t length, queries;  // of the sequence
    std::int64_t blocks;           // stored, of this head
    const std::int32_t *position;  // [blocks], or null
};

// Of each channel, what its scores get by K's scale; all 1 where there is none.
inline float key_factor(const hsb_prefill_params &p, std::int64_t kv_head, int channel) {
    return p.k.scale ? p.k.scale[kv_head * p.head_dim + channel] * unit_of(p.k.stored) : 1.0f;
}

// Q rows to a tile's Q^T, with scale, K's own scale and log2(e), in the order of K's channels; padding lanes are zero.
template <class Isa, class Type>
void load_tile(const Rows &rows, const Scratch<Isa> &s, int t, std::int64_t first, int used) {
    constexpr int kLanes = Tile<Isa>::lanes;
    const int head_dim = rows.p.head_dim;
    const auto factor = Isa::set(rows.p.scale * kLog2e);
    float *queries = s.queries(t), *line = s.at(s.line);
    for (int lane = 0; lane < kLanes; ++lane) {
        const std::int64_t row = first + (lane < used ? lane : used - 1);
        const auto *q = static_cast<const std::uint16_t *>(rows.p.q) + rows.index(row) * head_dim;
        for (int d = 0; d < head_dim; d += Isa::width)
            Isa::store(line + d, lane < used ? Isa::mul(factor, Isa::load(q + d, Type{})) : Isa::zero());
        if (rows.p.k.scale)
            for (int d = 0; d < head_dim; ++d) line[d] *= key_factor(rows.p, rows.kv_head, d);
        const auto put = [=](int place, int channel) { queries[place * kLanes + lane] = line[channel]; };
        if (rows.p.key_order == HSB_ORDER_MIRROR)
            for_each_mirrored(head_dim, put);
        else
            for (int d = 0; d < head_dim; ++d) put(d, d);
        s.last(t)[lane] = static_cast<float>(rows.query(row) - rows.query(first));
        s.reference(t)[lane] = -INFINITY;
        s.sum(t)[lane] = 0.0f;
    }
    float *output = s.output(t);
    for (int i = 0; i < head_dim * kLanes; ++i) output[i] = 0.0f;
}

// What K's shift took from every score of a tile's queries [lanes], from Q^T, which is at hand: q itself is far by now.
template <class Isa>
void shift_of_scores(const Rows &rows, const Scratch<Isa> &s, int t, float *taken) {
    using T = Tile<Isa>;
    const hsb_prefill_params &p = rows.p;
    const float *shift = p.key_shift + rows.kv_head * p.head_dim;
    const float *queries = s.queries(t);
    typename Isa::Float sum[T::vectors];
    for (auto &x : sum) x = Isa::zero();
    const auto add = [&](int place, int channel) {
        const auto factor = Isa::set(shift[channel] / key_factor(p, rows.kv_head, channel));
        const float *query = queries + place * T::lanes;
        for (int v = 0; v < T::vectors; ++v) sum[v] = Isa::fma(factor, Isa::load(query + v * Isa::width), sum[v]);
    };
    if (p.key_order == HSB_ORDER_MIRROR)
        for_each_mirrored(p.head_dim, add);
    else
        for (int d = 0; d < p.head_dim; ++d) add(d, d);
    for (int v = 0; v < T::vectors; ++v) Isa::store(taken + v * Isa::width, Isa::mul(sum[v], Isa::set(kLn2)));
}

// O^T over the sums to out, and the log-sum-exp.
template <class Isa, class Type>
void store_tile(const Rows &rows, const Scratch<Isa> &s, int t, std::int64_t first, int used) {
    constexpr int kLanes = Tile<Isa>::lanes;
    const hsb_prefill_params &p = rows.p;
    const int head_dim = p.head_dim;
    const float *output = s.output(t);
    float *line = s.at(s.line);
    float taken[kLanes];
    if (p.key_shift) shift_of_scores<Isa>(rows, s, t, taken);
    for (int lane = 0; lane < used; ++lane) {
        const std::int64_t index = rows.index(first + lane);
        const float sum = s.sum(t)[lane];
        auto *out = static_cast<std::uint16_t *>(p.out) + index * head_dim;
        if (rows.sees_nothing(first + lane)) {
            for (int d = 0; d < head_dim; ++d) out[d] = 0;
            p.lse[index] = -INFINITY;
            continue;
        }
        for (int d = 0; d < head_dim; ++d) line[d] = output[d * kLanes + lane];
        float lse = s.reference(t)[lane] * kLn2 + (logf(sum) + sum_reserve(p.dtype, p.seq) * kLn2);
        if (p.key_shift) lse += taken[lane];
        p.lse[index] = lse;
        const auto of_head = [&](const float *x) { return x ? x + rows.kv_head * head_dim : nullptr; };
        const bool finish = p.value_shift || p.v.scale;
        if (finish)
            finish_output<Isa, Type>(line, 1.0f / sum, of_head(p.v.scale), unit_of(p.v.stored), of_head(p.value_shift),
                                     head_dim);
        const auto factor = Isa::set(finish ? 1.0f : 1.0f / sum);
        for (int d = 0; d < head_dim; d += Isa::width)
            Isa::store(out + d, Isa::mul(factor, Isa::load(line + d)), Type{});
    }
}

// One block of K and V for one tile. `start`: the block's first token; `token`: the last that the tile's first query
// sees. `first`: of the tile's blocks, whose first token is shown to all: what sees not even that sees nothing at all,
// and must have a maximum that is finite all the same.
template <class Isa>
void attend(const Scratch<Isa> &s, int t, const Matrix &k, const Matrix &v, std::int64_t start, std::int64_t token,
            bool first, float reserve) {
    constexpr int kLanes = Tile<Isa>::lanes;
    float *scores = s.at(s.scores);
    float rescale[kLanes];
    multiply<Isa>(k, s.queries(t), scores);
    if (start + kBlock - 1 > token) {
        float last[kLanes];
        const float least = first ? 0.0f : -INFINITY;
        for (int lane = 0; lane < kLanes; ++lane) {
            last[lane] = s.last(t)[lane] + static_cast<float>(token - start);
            last[lane] = last[lane] > least ? last[lane] : least;
        }
        mask_future<Isa>(scores, last);
    }
    const bool raised = raise_reference<Isa>(scores, s.reference(t), s.sum(t), rescale);
    exponentiate<Isa>(scores, s.reference(t), s.sum(t), reserve);
    multiply_add<Isa>(v, scores, s.output(t), raised ? rescale : nullptr);
}

// Type: of all but the values of pages, of which K and V may have different ones.
template <class Isa, class Type>
void prefill_unit_of(const hsb_prefill_params &p, const PrefillUnit &unit, std::byte *scratch) {
    constexpr int kLanes = Tile<Isa>::lanes;
    const Scratch<Isa> s(p.head_dim, scratch);
    const Rows rows(p, unit.head);
    const auto tiles = static_cast<int>((unit.last_row - unit.first_row + kLanes - 1) / kLanes);
    const auto first_row = [&](int t) { return unit.first_row + t * kLanes; };
    const auto used = [&](int t) {
        const std::int64_t left = unit.last_row - first_row(t);
        return static_cast<int>(left < kLanes ? left : kLanes);
    };
    for (int t = 0; t < tiles; ++t) load_tile<Isa, Type>(rows, s, t, first_row(t), used(t));

    const std::int32_t *k_map = p.k.map + unit.head * rows.blocks;
    const std::int32_t *v_map = p.v.map + unit.head * rows.blocks;
    const std::int64_t end = std::min(unit.last_row, rows.there());  // rows behind it see nothing
    const std::int64_t seen = unit.first_row < end ? rows.blocks_until(rows.last_token(end - 1)) : 0;
    const float reserve = sum_reserve(p.dtype, p.seq);
    int from = 0;  // tiles before it have seen all they see
    for (std::int64_t block = 0; block < seen; ++block) {
        const std::int64_t start = rows.start(block);
        while (rows.last_token(first_row(from) + used(from) - 1) < start) ++from;
        const Matrix k = unpack<Isa, Type>(p.k, k_map[block], kBlock, p.head_dim, scratch + s.k);
        const Matrix v = unpack<Isa, Type>(p.v, v_map[block], p.head_dim, kBlock, scratch + s.v);
        const std::int64_t next = block + 1 < seen ? block + 1 : block;
        for (int t = from; t < tiles; ++t) {
            // Between tiles, so that memory has all of this block's time to bring the next one.
            prefetch(stored_page(p.k, k_map[next]), t - from, tiles - from);
            prefetch(stored_page(p.v, v_map[next]), t - from, tiles - from);
            attend<Isa>(s, t, k, v, start, rows.last_token(first_row(t)), block == 0, reserve);
        }
    }
    for (int t = 0; t < tiles; ++t) store_tile<Isa, Type>(rows, s, t, first_row(t), used(t));
}

}  // namespace

template <class Isa>
int prefill_tile_lanes() {
    return Tile<Isa>::lanes;
}

template <class Isa>
std::size_t prefill_scratch_bytes(int head_dim, int tiles) {
    const Scratch<Isa> s(head_dim);
    return s.shared + tiles * s.tile;
}

template <class Isa>
void prefill_unit(const hsb_prefill_params &p, const PrefillUnit &unit, std::byte *scratch) {
    with_type(p.dtype, [&](auto type) { prefill_unit_of<Isa, decltype(type)>(p, unit, scratch); });
}

template int prefill_tile_lanes<Isa>();
template std::size_t prefill_scratch_bytes<Isa>(int, int);
template void prefill_unit<Isa>(const hsb_prefill_params &, const PrefillUnit &, std::byte *);

}  // namespace hsb::cpu::prefill

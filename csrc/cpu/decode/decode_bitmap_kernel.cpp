#include "decode.h"

#include "attention_shape.h"
#include "chunk.h"
#include "cpu/simd/isa.h"
#include "softmax.h"

namespace hsb::cpu {
namespace {

constexpr int kChunk = 64;  // elements that one bitmap covers
constexpr int kPad = 8;     // values that an offset counts in

// One of K and V: its bitmaps in row-major order, from the unit's first token on.
struct Rows {
    const std::uint64_t *bitmap;
    const std::uint32_t *offset;
    const std::uint16_t *values;
    std::int64_t end;  // no value of the unit stands at or after this

    Rows(const hsb_bitmaps &b, std::int64_t first_row, std::int64_t rows, int parts)
        : bitmap(b.bitmap + first_row * parts), offset(b.offset + first_row * parts),
          values(static_cast<const std::uint16_t *>(b.values)) {
        const std::int64_t last = rows * parts - 1;
        const std::int64_t kept = __builtin_popcountll(bitmap[last]);
        end = static_cast<std::int64_t>(offset[last]) * kPad + ceil_div(kept, kPad) * kPad;
    }

    // How many of the tokens [first, first + tokens) have kChunk values readable behind each of their bitmaps.
    // expand() reads whole vectors, which near the end of the unit might leave the buffer.
    int whole_tokens(std::int64_t first, int tokens, int parts) const {
        for (; tokens > 0; --tokens) {
            const std::int64_t last = (first + tokens) * parts - 1;
            if (static_cast<std::int64_t>(offset[last]) * kPad + kChunk <= end) break;
        }
        return tokens;
    }

    // Values of a bitmap, with kChunk of them readable: those of the last few tokens are copied to `room` first.
    template <bool whole>
    const std::uint16_t *at(std::int64_t index, std::uint16_t (&room)[kChunk]) const {
        const std::uint16_t *from = values + static_cast<std::int64_t>(offset[index]) * kPad;
        if (whole) return from;
        const int kept = __builtin_popcountll(bitmap[index]);
        for (int i = 0; i < kChunk; ++i) room[i] = i < kept ? from[i] : 0;
        return room;
    }
};

constexpr int largest_power(int limit) { return limit < 2 ? 1 : 2 * largest_power(limit / 2); }  // of 2

// Lanes [lane, lane + width) of a chunk as floats, zeros where nothing is kept.
template <class Isa, class Type>
typename Isa::Float expand(std::uint64_t bits, const std::uint16_t *values, int lane) {
    const int before = lane ? __builtin_popcountll(bits << (64 - lane)) : 0;
    const auto mask = static_cast<std::uint32_t>(bits >> lane) & ((1u << Isa::width) - 1);
    return Isa::expand(values + before, mask, Type{});
}

// One unit, in runs of tokens: scores of a run, softmax, output. A kept value is expanded once for a chunk of heads.
template <class Isa, class Type>
class DecodeBitmaps {
    using Float = typename Isa::Float;
    static constexpr int width = Isa::width;
    static constexpr int kRunTokens = kRun * kBlock;

public:
    DecodeBitmaps(const hsb_decode_params &p, const DecodeUnit &unit)
        : p_(p), unit_(unit), group_(p.q_heads / p.kv_heads), head_dim_(p.head_dim),
          reserve_(sum_reserve(p.dtype, p.seq)), parts_(p.head_dim / kChunk), s_(unit.scratch, group_, p.head_dim),
          first_(unit.first_block * kBlock),
          tokens_((unit.last_block * kBlock < p.seq ? unit.last_block * kBlock : p.seq) - first_),
          k_(p.k_bitmap, unit.head * p.seq + first_, tokens_, parts_),
          v_(p.v_bitmap, unit.head * p.seq + first_, tokens_, parts_) {}

    void run() {
        start_unit<Isa, Type>(p_, unit_, s_);
        for (std::int64_t first = 0; first < tokens_; first += kRunTokens) {
            const int tokens = static_cast<int>(tokens_ - first < kRunTokens ? tokens_ - first : kRunTokens);
            for_each_chunk<Isa>(group_, [&](auto chunk, int head) {
                constexpr int heads = decltype(chunk)::value;
                const int whole = k_.whole_tokens(first, tokens, parts_);
                score<heads, false>(first, score<heads, true>(first, 0, whole, head), tokens, head);
            });
            update_softmax<Isa>(s_, group_, head_dim_, tokens, score_factor(p_), reserve_);
            for_each_chunk<Isa>(group_, [&](auto chunk, int head) {
                constexpr int heads = decltype(chunk)::value;
                const int whole = v_.whole_tokens(first, tokens, parts_);
                weigh<heads, true>(first, 0, whole, head);
                weigh<heads, false>(first, whole, tokens, head);
            });
        }
        finish_unit<Isa>(p_, unit_, s_);
    }

private:
    // scores[head][token] = q . k for tokens [begin, end) of a run: lanes are head dims; as many tokens at a time as
    // give one vector of scores. Returns the first token not done: the whole kind leaves what does not fill a vector.
    template <int heads, bool whole>
    int score(std::int64_t first, int begin, int end, int head) {
        static_assert(heads <= width, "one vector of scores holds a token's");
        constexpr int together = largest_power(width / heads);  // divides a run
        const float *q = s_.q + head * head_dim_;
        float *scores = s_.scores + head * kRunTokens;
        int t = begin;
        for (; whole ? t + together <= end : t < end; t += together) {
            Float sums[width];
            for (Float &sum : sums) sum = Isa::zero();
            for (int part = 0; part < parts_; ++part) {
                std::uint16_t room[together][kChunk];
                std::uint64_t bits[together];
                const std::uint16_t *values[together];
                for (int i = 0; i < together; ++i) {
                    const int token = whole || t + i < end ? t + i : end - 1;  // the excess is masked with the tail
                    const std::int64_t index = (first + token) * parts_ + part;
                    bits[i] = k_.bitmap[index];
                    values[i] = k_.at<whole>(index, room[i]);
                }
#pragma GCC unroll 16
                for (int lane = 0; lane < kChunk; lane += width) {
                    Float x[together];
                    for (int i = 0; i < together; ++i) x[i] = expand<Isa, Type>(bits[i], values[i], lane);
                    for (int h = 0; h < heads; ++h) {
                        const Float factor = Isa::load(q + h * head_dim_ + part * kChunk + lane);
                        for (int i = 0; i < together; ++i)
                            sums[i * heads + h] = Isa::fma(x[i], factor, sums[i * heads + h]);
                    }
                }
            }
            alignas(64) float lanes[width];
            Isa::store(lanes, Isa::sums(sums));
            for (int i = 0; i < together; ++i)
                for (int h = 0; h < heads; ++h) scores[h * kRunTokens + t + i] = lanes[i * heads + h];
        }
        return t;
    }

    // out[head][dim] += p . v for tokens [begin, end) of a run: lanes are head dims, whose sums stay in registers.
    template <int heads, bool whole>
    void weigh(std::int64_t first, int begin, int end, int head) {
        if (begin == end) return;
        constexpr int fit = largest_power(Isa::registers / 2 / heads);
        constexpr int vectors = fit < kChunk / width ? fit : kChunk / width;
        const float *probabilities = s_.scores + head * kRunTokens;
        for (int part = 0; part < parts_; ++part)
            for (int lane = 0; lane < kChunk; lane += vectors * width) {
                float *out = s_.out + head * head_dim_ + part * kChunk + lane;
                Float sums[heads][vectors];
                for (int h = 0; h < heads; ++h)
                    for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::load(out + h * head_dim_ + v * width);
                for (int t = begin; t < end; ++t) {
                    std::uint16_t room[kChunk];
                    const std::int64_t index = (first + t) * parts_ + part;
                    const std::uint64_t bits = v_.bitmap[index];
                    const std::uint16_t *values = v_.at<whole>(index, room);
                    Float x[vectors];
                    for (int v = 0; v < vectors; ++v) x[v] = expand<Isa, Type>(bits, values, lane + v * width);
                    for (int h = 0; h < heads; ++h) {
                        const Float factor = Isa::set(probabilities[h * kRunTokens + t]);
                        for (int v = 0; v < vectors; ++v) sums[h][v] = Isa::fma(x[v], factor, sums[h][v]);
                    }
                }
                for (int h = 0; h < heads; ++h)
                    for (int v = 0; v < vectors; ++v) Isa::store(out + h * head_dim_ + v * width, sums[h][v]);
            }
    }

    const hsb_decode_params &p_;
    const DecodeUnit &unit_;
    const int group_;
    const int head_dim_;
    const float reserve_;
    const int parts_;
    const DecodeScratch s_;
    const std::int64_t first_, tokens_;
    const Rows k_, v_;
};

}  // namespace

template <class Isa>
void attend_bitmaps(const hsb_decode_params &p, const DecodeUnit &unit) {
    with_type(p.dtype, [&](auto type) { DecodeBitmaps<Isa, decltype(type)>(p, unit).run(); });
}

template void attend_bitmaps<Isa>(const hsb_decode_params &, const DecodeUnit &);

}  // namespace hsb::cpu

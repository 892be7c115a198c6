#include "decode.h"

#include "attention_shape.h"
#include "chunk.h"
#include "cpu/page_pool.h"
#include "cpu/simd/isa.h"
#include "softmax.h"

namespace hsb::cpu {
namespace {

// The pages of one kv head.
struct Pages {
    const hsb_pages &pages;
    const std::int32_t *map;

    Pages(const hsb_pages &pages, std::int64_t head, std::int64_t blocks)
        : pages(pages), map(pages.map + head * blocks) {}

    StoredPage operator[](std::int64_t block) const { return stored_page(pages, map[block]); }
};

// One unit. Pages are read in runs, K of a run and then V of it:
//
//   K0 K1 ... K7 | softmax | V0 V1 ... V7 | K8 K9 ... K15 | softmax | V8 V9 ... V15 | ...
// Type: of all but the values of pages, of which K and V may have different ones.
template <class Isa, class Type>
class Decode {
public:
    Decode(const hsb_decode_params &p, const DecodeUnit &unit)
        : p_(p), unit_(unit), group_(p.q_heads / p.kv_heads), head_dim_(p.head_dim),
          reserve_(sum_reserve(p.dtype, p.seq)), s_(unit.scratch, group_, p.head_dim),
          k_(p.k, unit.head, ceil_div(p.seq, kBlock)), v_(p.v, unit.head, ceil_div(p.seq, kBlock)) {}

    void run() {
        start_unit<Isa, Type>(p_, unit_, s_);
        with_stored<Type>(p_.k.stored, [&](auto stored) { make_tables(stored); });
        for (std::int64_t first = unit_.first_block; first < unit_.last_block; first += kRun) {
            const std::int64_t last = first + kRun < unit_.last_block ? first + kRun : unit_.last_block;
            with_stored<Type>(p_.k.stored, [&](auto stored) {
                for (std::int64_t block = first; block < last; ++block) score_block(stored, block, first);
            });
            const std::int64_t end = last * kBlock < unit_.length ? last * kBlock : unit_.length;
            update_softmax<Isa>(s_, group_, head_dim_, static_cast<int>(end - first * kBlock), score_factor(p_),
                                reserve_);
            with_stored<Type>(p_.v.stored, [&](auto stored) {
                for (std::int64_t block = first; block < last; ++block) weigh_block(stored, block, first);
            });
        }
        finish_unit<Isa>(p_, unit_, s_);
    }

private:
    // What kinds that the unit has blocks of make of its queries.
    template <class Stored>
    void make_tables(Stored) {
        const auto make = [&](auto kind) {
            if constexpr (kind.query_floats(kTileSteps) > 0) {
                bool any = false;
                for (std::int64_t block = unit_.first_block; block < unit_.last_block; ++block)
                    any |= k_[block].kind == kind.kind;
                if (!any) return;
                for_each_chunk<Isa>(group_, [&](auto chunk, int head) {
                    make_query_tables<Isa, Stored, decltype(chunk)::value>(kind, s_.q + head * head_dim_, head_dim_,
                                                                           s_.tables_of(kind, head, group_, head_dim_));
                });
            }
        };
        for_each_kind_of(KindsOf<Stored>{}, make);
    }

    // scores[head][block's tokens] = q . k
    template <class Stored>
    void score_block(Stored, std::int64_t block, std::int64_t first) {
        const StoredPage page = k_[block];
        float *scores = s_.scores + (block - first) * kBlock;
        for (int h = 0; h < group_; ++h)
            for (int t = 0; t < kBlock; t += Isa::width) Isa::store(scores + h * kStride + t, Isa::zero());
        for_each_chunk<Isa>(group_, [&](auto chunk, int head) {
            with_kind<KindsOf<Stored>>(page.kind, [&](auto kind) {
                score_page<Isa, Stored, decltype(chunk)::value>(kind, page.data, head_dim_, s_.q + head * head_dim_,
                                                                s_.tables_of(kind, head, group_, head_dim_),
                                                                scores + head * kStride, kStride);
            });
        });
    }

    // out[head][...] += p . v
    template <class Stored>
    void weigh_block(Stored, std::int64_t block, std::int64_t first) {
        const StoredPage page = v_[block];
        const float *probabilities = s_.scores + (block - first) * kBlock;
        const auto weigh = [&](auto kinds, auto chunk, int head) {
            with_kind<decltype(kinds)>(page.kind, [&](auto kind) {
                weigh_page<Isa, Stored, decltype(chunk)::value>(kind, page.data, head_dim_,
                                                                probabilities + head * kStride, kStride, s_.weights,
                                                                s_.out + head * head_dim_);
            });
        };
        for_each_chunk<Isa>(group_, [&](auto chunk, int head) {
            if (p_.v.value_axis == HSB_AXIS_HEAD_DIM) return weigh(HeadDimKindsOf<Stored>{}, chunk, head);
            weigh(KindsOf<Stored>{}, chunk, head);
        });
    }

    static constexpr int kStride = kRun * kBlock;  // of scores, from one query head to the next

    const hsb_decode_params &p_;
    const DecodeUnit &unit_;
    const int group_;
    const int head_dim_;
    const float reserve_;
    const DecodeScratch s_;
    const Pages k_, v_;
};

// What K's shift took from every score of a query, and so from its log-sum-exp.
template <class Isa, class Type>
float shift_of_scores(const hsb_decode_params &p, std::int64_t kv_head, const std::uint16_t *q) {
    const float *shift = p.key_shift + kv_head * p.head_dim;
    auto sum = Isa::zero();
    for (int d = 0; d < p.head_dim; d += Isa::width)
        sum = Isa::fma(Isa::load(q + d, Type{}), Isa::load(shift + d), sum);
    return p.scale * Isa::sum(sum);
}

}  // namespace

template <class Isa>
void attend_pages(const hsb_decode_params &p, const DecodeUnit &unit) {
    with_type(p.dtype, [&](auto type) { Decode<Isa, decltype(type)>(p, unit).run(); });
}

template <class Isa>
void combine_splits(const hsb_decode_params &p, std::int64_t head, float *partials, std::int64_t stride,
                    std::int64_t splits) {
    float max = kNoMax;
    for (std::int64_t s = 0; s < splits; ++s) {
        const float m = partials[s * stride + p.head_dim];
        max = m > max ? m : max;
    }
    auto *out = static_cast<std::uint16_t *>(p.out) + head * p.head_dim;
    if (max == kNoMax) {  // no tokens
        for (int d = 0; d < p.head_dim; ++d) out[d] = 0;
        p.lse[head] = kNoMax;
        return;
    }
    float sum = 0.0f;
    for (std::int64_t s = 0; s < splits; ++s) {
        float *partial = partials + s * stride;
        const float weight = exp2_scalar<Isa>(partial[p.head_dim] - max);
        const typename Isa::Float factor = Isa::set(weight);
        sum += weight * partial[p.head_dim + 1];
        for (int d = 0; d < p.head_dim; d += Isa::width) {
            const typename Isa::Float before = s ? Isa::load(partials + d) : Isa::zero();
            Isa::store(partials + d, Isa::fma(Isa::load(partial + d), factor, before));
        }
    }
    float lse = (max + (__builtin_log2f(sum) + sum_reserve(p.dtype, p.seq))) * kLn2;
    const std::int64_t kv_head = head / (p.q_heads / p.kv_heads);
    with_type(p.dtype, [&](auto type) {
        using Type = decltype(type);
        const auto of_head = [&](const float *x) { return x ? x + kv_head * p.head_dim : nullptr; };
        if (p.value_shift || p.v.scale) {
            const float *shift = of_head(p.value_shift), *scale = of_head(p.v.scale);
            finish_output<Isa, Type>(partials, 1.0f / sum, scale, unit_of(p.v.stored), shift, p.head_dim);
            sum = 1.0f;
        }
        for (int d = 0; d < p.head_dim; ++d) out[d] = from_float(partials[d] / sum, type);
        const auto *q = static_cast<const std::uint16_t *>(p.q) + head * p.head_dim;
        if (p.key_shift) lse += shift_of_scores<Isa, Type>(p, kv_head, q);
    });
    p.lse[head] = lse;
}

template void attend_pages<Isa>(const hsb_decode_params &, const DecodeUnit &);
template void combine_splits<Isa>(const hsb_decode_params &, std::int64_t, float *, std::int64_t, std::int64_t);

}  // namespace hsb::cpu

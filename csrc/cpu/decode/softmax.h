// Online softmax over the runs of a unit. Queries are as they came, for those of bf16 enter its dot products as they are;
// what scores count for, score_factor(), is applied to their differences from the maximum: powers of 2 are of those. The
// sign of the scale is the queries'.
#pragma once

#include "cpu/fit.h"
#include "cpu/simd/isa.h"
#include "decode.h"

namespace hsb::cpu {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kNoMax = -__builtin_inff();

template <class Isa>
float exp2_scalar(float x) {
    alignas(64) float lanes[Isa::width];
    Isa::store(lanes, Isa::exp2(Isa::set(x)));
    return lanes[0];
}

// Powers of 2 for a unit of the scores: positive, and not 0 where the scale is, for then what is masked, -infinity, would
// be no number.
inline float score_factor(const hsb_decode_params &p) {
    return p.scale == 0 ? 1.0f : __builtin_fabsf(p.scale) * kLog2E;
}

// Queries, K's scale included, in the order of K's channels, and nothing seen yet.
template <class Isa, class Type>
void start_unit(const hsb_decode_params &p, const DecodeUnit &unit, const DecodeScratch &s) {
    const int group = p.q_heads / p.kv_heads;
    const auto *q = static_cast<const std::uint16_t *>(p.q) + unit.head * group * p.head_dim;
    const bool mirror = p.key_order == HSB_ORDER_MIRROR;
    const typename Isa::Float sign = Isa::set(p.scale == 0 ? 0.0f : p.scale < 0 ? -1.0f : 1.0f);
    float *wide = mirror ? s.scores : s.q;  // there are no scores yet
    for (int i = 0; i < group * p.head_dim; i += Isa::width) {
        Isa::store(wide + i, Isa::mul(Isa::load(q + i, Type{}), sign));
        Isa::store(s.out + i, Isa::zero());
    }
    if (p.k.scale) {
        const float *of_channel = p.k.scale + unit.head * p.head_dim;
        for (int h = 0; h < group; ++h)
            for (int d = 0; d < p.head_dim; d += Isa::width) {
                float *x = wide + h * p.head_dim + d;
                Isa::store(x,
                           Isa::mul(Isa::load(x), Isa::mul(Isa::load(of_channel + d), Isa::set(unit_of(p.k.stored)))));
            }
    }
    if (mirror)
        for (int h = 0; h < group; ++h) {
            const float *__restrict from = wide + h * p.head_dim;
            float *__restrict to = s.q + h * p.head_dim;
            for_each_mirrored(p.head_dim, [=](int place, int channel) { to[place] = from[channel]; });
        }
    for (int h = 0; h < group; ++h) {
        s.max[h] = kNoMax;
        s.sum[h] = 0.0f;
    }
}

// Turns a run's scores into probabilities relative to the maximum so far, and brings max, sum and out up to it. Of
// the scores only the first `valid` are read; the rest of the last block gets probability 0. `factor`: score_factor().
// `reserve`: sum_reserve(); it is subtracted after the maximum, beside which it could vanish.
template <class Isa>
void update_softmax(const DecodeScratch &s, int group, int head_dim, int valid, float factor, float reserve) {
    using Float = typename Isa::Float;
    constexpr int width = Isa::width;
    const int tokens = static_cast<int>(ceil_div(valid, kBlock)) * kBlock;
    for (int h = 0; h < group; ++h) {
        float *scores = s.scores + h * kRun * kBlock;
        float *out = s.out + h * head_dim;
        for (int t = valid; t < tokens; ++t) scores[t] = kNoMax;
        Float most = Isa::load(scores);
        for (int t = width; t < tokens; t += width) most = Isa::max(most, Isa::load(scores + t));
        const float largest = Isa::largest(most);
        if (largest > s.max[h]) {
            const float shrink = exp2_scalar<Isa>((s.max[h] - largest) * factor);
            const Float less = Isa::set(shrink);
            for (int d = 0; d < head_dim; d += width) Isa::store(out + d, Isa::mul(Isa::load(out + d), less));
            s.sum[h] *= shrink;
            s.max[h] = largest;
        }
        const Float reference = Isa::set(s.max[h]), scale = Isa::set(factor), lower = Isa::set(-reserve);
        Float total = Isa::zero();
        for (int t = 0; t < tokens; t += width) {
            const Float p = Isa::exp2(Isa::fma(Isa::sub(Isa::load(scores + t), reference), scale, lower));
            Isa::store(scores + t, p);
            total = Isa::add(total, p);
        }
        s.sum[h] += Isa::sum(total);
    }
}

template <class Isa>
void finish_unit(const hsb_decode_params &p, const DecodeUnit &unit, const DecodeScratch &s) {
    for (int h = 0; h < p.q_heads / p.kv_heads; ++h) {
        float *partial = unit.partial + h * partial_floats(p.head_dim);
        for (int d = 0; d < p.head_dim; d += Isa::width) Isa::store(partial + d, Isa::load(s.out + h * p.head_dim + d));
        partial[p.head_dim] = s.max[h] * score_factor(p);
        partial[p.head_dim + 1] = s.sum[h];
    }
}

}  // namespace hsb::cpu

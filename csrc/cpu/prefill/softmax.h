// Softmax over tokens with lanes = queries: everything is vertical, nothing crosses lanes.
//
// Scores are in the log2 domain (log2(e) and the scale are in Q). Each query has a reference that its exponentials
// are taken against, and O and the sum of exponentials are relative to it. A true running maximum would rise, and
// cost a pass over O, at almost every early block for some query of the tile. So when a score exceeds the reference,
// the reference rises to kMargin above it: it then rises rarely, exponents stay <= 0, and all that is lost is
// kMargin of fp32's 126 powers of two.
#pragma once

#include "cpu/page.h"
#include "products.h"

namespace hsb::cpu::prefill {

constexpr float kMargin = 8.0f;

// Adds minus infinity, or as good as, to the scores of tokens after a query's last one. last[lanes]: that token,
// counted from the block's first.
template <class Isa>
void mask_future(float *scores, const float *last) {
    for (int v = 0; v < Tile<Isa>::vectors; ++v) {
        const auto limit = Isa::load(last + v * Isa::width);
        float *score = scores + v * Isa::width;
        for (int token = 0; token < kBlock; ++token, score += Tile<Isa>::lanes) {
            const auto beyond = Isa::max(Isa::sub(Isa::set(static_cast<float>(token)), limit), Isa::zero());
            Isa::store(score, Isa::fma(beyond, Isa::set(-3e38f), Isa::load(score)));
        }
    }
}

// Raises references that this block's scores exceed, and scales their sums. True where any did: then O must be
// multiplied by rescale[lanes].
template <class Isa>
bool raise_reference(const float *scores, float *reference, float *sum, float *rescale) {
    using T = Tile<Isa>;
    typename Isa::Float top[T::vectors];
    for (int v = 0; v < T::vectors; ++v) top[v] = Isa::load(scores + v * Isa::width);
    for (int token = 1; token < kBlock; ++token)
        for (int v = 0; v < T::vectors; ++v)
            top[v] = Isa::max(top[v], Isa::load(scores + token * T::lanes + v * Isa::width));
    auto excess = Isa::sub(top[0], Isa::load(reference));
    for (int v = 1; v < T::vectors; ++v)
        excess = Isa::max(excess, Isa::sub(top[v], Isa::load(reference + v * Isa::width)));
    if (!(Isa::largest(excess) > 0)) return false;
    for (int v = 0; v < T::vectors; ++v) {
        const int lane = v * Isa::width;
        float level[Isa::width];
        Isa::store(level, top[v]);
        for (int i = 0; i < Isa::width; ++i)  // rare, so scalar will do
            level[i] = level[i] > reference[lane + i] ? level[i] + kMargin : reference[lane + i];
        const auto raised = Isa::load(level);
        const auto factor = Isa::exp2(Isa::sub(Isa::load(reference + lane), raised));
        Isa::store(reference + lane, raised);
        Isa::store(rescale + lane, factor);
        Isa::store(sum + lane, Isa::mul(Isa::load(sum + lane), factor));
    }
    return true;
}

// Scores to exponentials, in place; adds them to the sums. `reserve`: sum_reserve(). It is subtracted after the
// reference, beside which it could vanish.
template <class Isa>
void exponentiate(float *scores, const float *reference, float *sum, float reserve) {
    const auto lower = Isa::set(reserve);
    for (int v = 0; v < Tile<Isa>::vectors; ++v) {
        const auto base = Isa::load(reference + v * Isa::width);
        auto total = Isa::load(sum + v * Isa::width);
        float *score = scores + v * Isa::width;
        for (int token = 0; token < kBlock; ++token, score += Tile<Isa>::lanes) {
            const auto y = Isa::exp2(Isa::sub(Isa::sub(Isa::load(score), base), lower));
            Isa::store(score, y);
            total = Isa::add(total, y);
        }
        Isa::store(sum + v * Isa::width, total);
    }
}

}  // namespace hsb::cpu::prefill

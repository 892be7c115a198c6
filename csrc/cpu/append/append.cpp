// Appends tokens to a cache that grows, and judges the blocks that have left its window (hsb_append_params). One work item
// is K or V of one (sequence, kv head): it shares nothing with the others.
#include "api.h"
#include "append_shape.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"
#include "head.h"

namespace hsb::cpu {
namespace {

// Tokens of all heads up to which waking threads costs more than they save.
constexpr std::int64_t kFewRows = 64;

void check(const hsb_growing &g, bool is_key) {
    check_growing(g);
    HSB_CHECK(g.losses || g.ratio == 0.0 || g.ratio == 1.0, "losses are required where ratio is between 0 and 1");
    HSB_CHECK(is_key || !g.weights, "only K's channels have weights");
    HSB_CHECK(g.value_axis == HSB_AXIS_TOKENS || !is_key, "K has no value_axis");
    HSB_CHECK(g.dense_pages >= 0 && g.sparse_pages >= 0 && g.wide_pages >= 0, "pages cannot be negative");
}

void check(const hsb_append_params &p) {
    check_append_shape(p, kBlock);
    HSB_CHECK(p.k && p.v && p.lengths && p.non_finite && p.overflow,
              "k, v, lengths, non_finite and overflow are required");
    HSB_CHECK(p.threads > 0, "threads must be positive");
    check(p.key, true);
    check(p.value, false);
}

// Tokens that a sequence gets; 0 where they would be too many.
std::int64_t count_of(const hsb_append_params &p, std::int64_t sequence) {
    const std::int64_t count = p.counts ? p.counts[sequence] : p.tokens;
    return count > 0 && count <= p.tokens && p.lengths[sequence] + count <= p.seq ? count : 0;
}

}  // namespace
}  // namespace hsb::cpu

extern "C" int hsb_cpu_append(const hsb_append_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        check(*p);
        const std::int64_t heads = std::int64_t{p->batch} * p->kv_heads;
        std::int64_t rows = 0;
        bool judges = false;
        for (std::int64_t sequence = 0; sequence < p->batch; ++sequence) {
            const std::int64_t count = count_of(*p, sequence), wanted = p->counts ? p->counts[sequence] : p->tokens;
            if (wanted > p->tokens || p->lengths[sequence] + wanted > p->seq) p->overflow[sequence] = 1;
            rows += count * p->kv_heads;
            const Window window(*p, p->lengths[sequence], count);
            judges |= count > 0 && window.judged_end() > window.first() + p->key.state[sequence * p->kv_heads * 4 + 3];
        }
        if (rows == 0) return;
        FirstNonFinite bad_key(p->dtype), bad_value(p->dtype);
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            const int threads = judges || rows > kFewRows ? p->threads : 1;
            parallel_for(threads, 2 * heads, [&](std::int64_t item, int) {
                const bool is_key = item < heads;
                const std::int64_t head = is_key ? item : item - heads, sequence = head / p->kv_heads;
                const std::int64_t count = count_of(*p, sequence);
                if (count == 0) return;
                GrowingHead<Isa> growing(*p, is_key, head, is_key ? bad_key : bad_value);
                growing.append(Window(*p, p->lengths[sequence], count));
            });
        });
        for (std::int64_t sequence = 0; sequence < p->batch; ++sequence)
            p->lengths[sequence] += static_cast<std::int32_t>(count_of(*p, sequence));
        if (p->non_finite[0] < 0) p->non_finite[0] = bad_key.index();
        if (p->non_finite[1] < 0) p->non_finite[1] = bad_value.index();
    });
}

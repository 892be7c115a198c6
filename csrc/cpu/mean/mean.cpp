#include "mean.h"

#include <algorithm>
#include <vector>

#include "api.h"
#include "cpu/default_arithmetic.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"
#include "element.h"

// Runs of tokens are added up by whichever thread, and their sums in order: however many threads there are, the mean is
// the same.
extern "C" int hsb_cpu_mean(const hsb_mean_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        constexpr std::int64_t kRun = 512;  // tokens
        HSB_CHECK(p->batch > 0 && p->kv_heads > 0 && p->seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p->head_dim == 64 || p->head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(hsb::is_element(p->dtype), "dtype must be " + hsb::element_names());
        HSB_CHECK(0 <= p->first_token && p->first_token < p->last_token && p->last_token <= p->seq,
                  "at least one token, of the sequence");
        HSB_CHECK(p->x && p->mean, "x and mean are required");
        const std::int64_t heads = std::int64_t{p->batch} * p->kv_heads, tokens = p->last_token - p->first_token;
        const std::int64_t runs = (tokens + kRun - 1) / kRun;
        std::vector<double> sums(static_cast<std::size_t>(heads * runs * p->head_dim));
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            parallel_for(p->threads, heads * runs, [&](std::int64_t item, int) {
                const DefaultArithmetic arithmetic;
                const std::int64_t head = item / runs, first = item % runs * kRun;
                const auto *x =
                    static_cast<const std::uint16_t *>(p->x) + (head * p->seq + p->first_token + first) * p->head_dim;
                add_tokens<Isa>(x, std::min(kRun, tokens - first), p->head_dim, p->dtype,
                                sums.data() + item * p->head_dim);
            });
        });
        for (std::int64_t i = 0; i < heads * p->head_dim; ++i) {
            const std::int64_t head = i / p->head_dim, c = i % p->head_dim;
            double sum = 0;
            for (std::int64_t run = 0; run < runs; ++run) sum += sums[(head * runs + run) * p->head_dim + c];
            p->mean[i] = static_cast<float>(sum / static_cast<double>(tokens));
        }
    });
}

#include "norms.h"

#include <algorithm>

#include "api.h"
#include "cpu/default_arithmetic.h"
#include "cpu/pool.h"
#include "cpu/simd/isa.h"
#include "element.h"

extern "C" int hsb_cpu_token_norms(const hsb_token_norms_params *p) {
    using namespace hsb::cpu;
    return hsb::guarded([&] {
        constexpr std::int64_t kRun = 1024;  // tokens, enough to make handing them out cheap
        HSB_CHECK(p->batch > 0 && p->kv_heads > 0 && p->seq > 0, "batch, kv_heads and seq must be positive");
        HSB_CHECK(p->head_dim == 64 || p->head_dim == 128, "head_dim must be 64 or 128");
        HSB_CHECK(hsb::is_element(p->dtype), "dtype must be " + hsb::element_names());
        HSB_CHECK(p->x && p->squares && p->largest, "x, squares and largest are required");
        const std::int64_t runs = (p->seq + kRun - 1) / kRun;
        dispatch_isa(p->isa, [&](auto tag) {
            using Isa = typename decltype(tag)::type;
            parallel_for(p->threads, std::int64_t{p->batch} * p->kv_heads * runs, [&](std::int64_t item, int) {
                const DefaultArithmetic arithmetic;
                const std::int64_t head = item / runs, first = item % runs * kRun, token = head * p->seq + first;
                find_token_norms<Isa>(static_cast<const std::uint16_t *>(p->x) + token * p->head_dim,
                                      std::min(kRun, p->seq - first), p->head_dim, p->dtype,
                                      p->shift ? p->shift + head * p->head_dim : nullptr, p->squares + token,
                                      static_cast<std::uint16_t *>(p->largest) + token);
            });
        });
    });
}

// Queries that see nothing, since all blocks up to theirs are evicted or a sequence has fewer tokens than queries, and those
// that it does not have: out 0, lse -infinity. The kernels of each path leave anything there, so that none of them has an
// instruction for it.
#pragma once

#include "params.h"

namespace hsb::cuda::prefill {

// After the path's kernel, on the same stream.
void blank_blind_queries(const hsb_prefill_params &p);

}  // namespace hsb::cuda::prefill

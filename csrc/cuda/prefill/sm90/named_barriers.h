// Who meets at which of a block's sixteen named barriers (ptx/named_barrier.cuh).
#pragma once

namespace hsb::cuda::prefill::sm90 {

enum NamedBarrier : int {
    kWholeCtaBarrier = 0,       // __syncthreads()
    kFirstConsumerBarrier = 1,  // and one more for each consumer warpgroup
};

}  // namespace hsb::cuda::prefill::sm90

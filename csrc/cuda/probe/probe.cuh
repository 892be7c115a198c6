// Reads (and copies) a buffer once, to learn what the memory can do.
#pragma once

#include <cstdint>

namespace hsb::cuda {

// What a thread has read, xored, into the checksum: every byte counts.
__device__ __forceinline__ void hand_in(uint4 all, unsigned long long *checksum) {
    const unsigned low = __reduce_xor_sync(~0u, all.x ^ all.z);
    const unsigned high = __reduce_xor_sync(~0u, all.y ^ all.w);
    if (threadIdx.x % 32 == 0) atomicXor(checksum, static_cast<unsigned long long>(high) << 32 | low);
}

constexpr int kProbeThreads = 512;
constexpr int kProbeLoads = 8;  // 16-byte loads a thread has in flight
constexpr int kProbePerMultiprocessor = 2;

// Grid-stride over runs of kProbeThreads * kProbeLoads chunks of 16 bytes: each load of a warp is 512 contiguous bytes,
// and a run is one contiguous range. Streaming hints both ways: nothing is used twice.
template <bool Copy>
__global__ void __launch_bounds__(kProbeThreads, kProbePerMultiprocessor)
    probe_kernel(const uint4 *__restrict__ src, uint4 *__restrict__ dst, std::int64_t chunks,
                 unsigned long long *__restrict__ checksum) {
    constexpr std::int64_t kRun = kProbeThreads * kProbeLoads;
    uint4 all = {0, 0, 0, 0};
    for (std::int64_t run = blockIdx.x * kRun; run < chunks; run += gridDim.x * kRun) {
        uint4 x[kProbeLoads];
#pragma unroll
        for (int i = 0; i < kProbeLoads; ++i) {
            const std::int64_t at = run + i * kProbeThreads + threadIdx.x;
            x[i] = at < chunks ? __ldcs(src + at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < kProbeLoads; ++i) {
            const std::int64_t at = run + i * kProbeThreads + threadIdx.x;
            if (Copy && at < chunks) __stcs(dst + at, x[i]);
            all.x ^= x[i].x, all.y ^= x[i].y, all.z ^= x[i].z, all.w ^= x[i].w;
        }
    }
    hand_in(all, checksum);
}

}  // namespace hsb::cuda

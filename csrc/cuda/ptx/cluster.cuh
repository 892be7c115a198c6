// Clusters: blocks of threads that run at the same time and write into one another's shared memory (sm_90 and newer).
#pragma once

#include <cstdint>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace hsb::cuda::ptx {

__device__ __forceinline__ int cluster_index() {
    int index;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
    return index;
}

// Of this block within its cluster.
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A barrier of all threads of a cluster in two halves. The first orders no memory but mbarriers' beginnings that a fence has
// released (bulk_copy.cuh): to order more, a thread would wait for all copies that it has asked for.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where what this block has at a shared address is in the block of a rank.
__device__ __forceinline__ std::uint32_t address_at_rank(std::uint32_t address, int rank) {
    std::uint32_t remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// Both addresses as address_at_rank() gives them, of one rank. The 8 bytes count at the barrier there.
__device__ __forceinline__ void store_at_rank(std::uint32_t address, float x, float y, std::uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
                 :
                 : "r"(address), "f"(x), "f"(y), "r"(barrier)
                 : "memory");
}

// As mbarrier_wait(), for what other blocks of the cluster have written.
__device__ __forceinline__ void mbarrier_wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\n"
        "bra again;\n"
        "finished:\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

}  // namespace hsb::cuda::ptx

#endif

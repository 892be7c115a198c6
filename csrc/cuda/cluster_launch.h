// A kernel on the caller's stream in clusters of blocks (sm_90 and newer).
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

#include "launch.h"

namespace hsb::cuda {

class ClusterLaunch {
public:
    ClusterLaunch(int clusters, int ranks, int threads, int shared_bytes)
        : clusters_(clusters), ranks_(ranks), threads_(threads), shared_bytes_(shared_bytes) {}

    // How many such clusters the GPU runs at once. The driver is asked once for each shape of a kernel.
    template <class Kernel>
    int at_once(Kernel *kernel) const {
        static std::mutex mutex;
        static std::map<std::tuple<const void *, int, int, int, int>, int> known;
        int device = 0;
        HSB_CUDA(cudaGetDevice(&device));
        const void *const code = reinterpret_cast<const void *>(kernel);
        const std::lock_guard<std::mutex> lock(mutex);
        const auto [found, is_new] = known.try_emplace({code, device, ranks_, threads_, shared_bytes_}, 0);
        if (is_new && is_compiled_for_clusters(code)) {
            allow(kernel);
            Configuration asked(*this, nullptr);
            if (cudaOccupancyMaxActiveClusters(&found->second, code, &asked.config) != cudaSuccess)
                cudaGetLastError();  // none, then; and no error of the call's
        }
        return found->second;
    }

    template <class... Parameters, class... Arguments>
    void run(void (*kernel)(Parameters...), void *stream, Arguments &&...arguments) const {
        allow(kernel);
        Configuration asked(*this, stream);
        HSB_CUDA(cudaLaunchKernelEx(&asked.config, kernel, Parameters(arguments)...));
    }

private:
    struct Configuration {
        cudaLaunchAttribute cluster{};
        cudaLaunchConfig_t config{};

        Configuration(const ClusterLaunch &of, void *stream) {
            cluster.id = cudaLaunchAttributeClusterDimension;
            cluster.val.clusterDim.x = of.ranks_;
            cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
            config.gridDim = dim3(of.clusters_ * of.ranks_);
            config.blockDim = dim3(of.threads_);
            config.dynamicSmemBytes = of.shared_bytes_;
            config.stream = static_cast<cudaStream_t>(stream);
            config.attrs = &cluster;
            config.numAttrs = 1;
        }
        Configuration(const Configuration &) = delete;
    };

    // Of older chips' PTX, which newer ones run, a kernel has no body.
    static bool is_compiled_for_clusters(const void *code) {
        cudaFuncAttributes attributes{};
        HSB_CUDA(cudaFuncGetAttributes(&attributes, code));
        return attributes.ptxVersion >= 90;
    }

    // More shared memory than is had without asking.
    template <class Kernel>
    void allow(Kernel *kernel) const {
        const void *const code = reinterpret_cast<const void *>(kernel);
        HSB_CUDA(cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_));
    }

    int clusters_, ranks_, threads_, shared_bytes_;
};

}  // namespace hsb::cuda

#include "pack_launch.cuh"

namespace hsb::cuda {

template void pack<StoredFp8>(const hsb_compress_params &p, const Plan &plan);

}  // namespace hsb::cuda

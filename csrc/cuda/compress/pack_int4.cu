#include "pack_launch.cuh"

namespace hsb::cuda {

template void pack<StoredInt4>(const hsb_compress_params &p, const Plan &plan);

}  // namespace hsb::cuda

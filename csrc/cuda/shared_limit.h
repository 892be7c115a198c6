// How much shared memory a block of threads may have, by the compute capability it is compiled for. A launcher asks the
// device (runtime.h); these are for what must hold at compile time.
#pragma once

namespace hsb::cuda {

constexpr int kSharedLimitSm80 = 163 << 10;
constexpr int kSharedLimitSm89 = 99 << 10;  // 8.6 as well: the least of all
constexpr int kSharedLimitSm90 = 227 << 10;

}  // namespace hsb::cuda

// Launches ops that work on groups of eight elements, one thread a group.
#pragma once

#include <algorithm>

#include "cuda/check.h"

namespace backsight::cuda {

constexpr int kGroupThreads = 256;

template <typename Body>
__global__ void __launch_bounds__(kGroupThreads)
    groups_kernel(const __grid_constant__ Body body, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kGroupThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kGroupThreads + threadIdx.x;
  for (; i < count; i += step) body(i);
}

template <typename Body>
void launch_groups(void* stream, const Body& body, int64_t count, const char* name) {
  if (count == 0) return;
  // Enough blocks to fill any GPU many times over; the kernel strides over what is left.
  const int64_t blocks = std::min<int64_t>((count + kGroupThreads - 1) / kGroupThreads, 1 << 20);
  groups_kernel<<<static_cast<unsigned>(blocks), kGroupThreads, 0,
                  static_cast<cudaStream_t>(stream)>>>(body, count);
  check_launch(name);
}

}  // namespace backsight::cuda

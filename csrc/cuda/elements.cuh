// Launches ops that compute each element of an output on its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/check.h"

// What assert() calls; declared by <cassert> only where NDEBUG is not.
extern "C" __device__ __attribute__((noreturn)) void __assertfail(const char* assertion,
                                                                  const char* file, unsigned line,
                                                                  const char* function,
                                                                  size_t charsize);

namespace backsight::cuda {

constexpr int kElementThreads = 256;

template <typename Kernel>
__global__ void __launch_bounds__(kElementThreads, 4)
    elements_kernel(const __grid_constant__ Kernel kernel, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kElementThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  for (; i < count; i += step) kernel(i);
}

// Fails as torch's own checks of indices do: the next synchronisation reports it.
__device__ __forceinline__ void check_switch(bool good) {
  if (!good)
    __assertfail("expected switches that point to a cell of their window in a map that there is",
                 __FILE__, __LINE__, "backsight", sizeof(char));
}

// Calls kernel(i) for i in [0, count).
template <typename Kernel>
void for_each_element(void* stream, const Kernel& kernel, int64_t count, const char* name) {
  if (count == 0) return;
  // Enough blocks to fill any GPU many times over; the kernel strides over what is left.
  const int64_t blocks =
      std::min<int64_t>((count + kElementThreads - 1) / kElementThreads, 1 << 20);
  elements_kernel<<<static_cast<unsigned>(blocks), kElementThreads, 0,
                    static_cast<cudaStream_t>(stream)>>>(kernel, count);
  check_launch(name);
}

}  // namespace backsight::cuda

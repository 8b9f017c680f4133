#include <algorithm>

#include "core/heatmap_phases.h"
#include "cuda/check.h"

namespace backsight::cuda {
namespace {

constexpr int kBlocks = 3;  // at least, on a multiprocessor: leaves each thread 80 registers

template <typename Kernel>
__global__ void __launch_bounds__(heatmap::kThreads, kBlocks)
    run(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  const int64_t blocks = kernel.blocks();
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t phases = kernel.phases(block);
    for (int64_t phase = 0; phase < phases; ++phase) {
      kernel.run(phase, block, static_cast<int>(threadIdx.x), &shared);
      if (phases > 1) __syncthreads();
    }
  }
}

}  // namespace

void heatmap(void* stream, const HeatmapParams& p) {
  if (heatmap::outputs_of(p) == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const auto zero = [&](void* to, int64_t bytes) {
    check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), s), "heatmap: clearing the workspace");
  };
  const auto launch = [&](const auto& kernel, int64_t most_blocks) {
    if (most_blocks == 0) return;
    // Enough blocks to fill any GPU; the kernel strides over what is left.
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(most_blocks, 1 << 14));
    run<<<blocks, heatmap::kThreads, 0, s>>>(kernel);
    check_launch("heatmap");
  };
  with_element(p.dtype,
               [&](auto element) { heatmap::run_kernels<decltype(element)>(p, zero, launch); });
}

}  // namespace backsight::cuda

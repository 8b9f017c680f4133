// Runs the CUDA kernels of heatmap on the host, block after block and thread after thread. For
// tests: no faster way to the same bits.
#include "core/heatmap_phases.h"

namespace backsight {

int64_t heatmap_workspace(const HeatmapParams& p) {
  return with_element(p.dtype, [&](auto element) {
    return heatmap::make_workspace<decltype(element)>(p, nullptr).bytes;
  });
}

namespace cpu {
namespace {

struct Loop {
  template <typename Kernel>
  void operator()(const Kernel& kernel, int64_t most_blocks) const {
    typename Kernel::Shared shared{};
    for (int64_t first = 0; first < most_blocks; ++first) {
      for (int64_t block = first; block < kernel.blocks(); block += most_blocks) {
        for (int64_t phase = 0; phase < kernel.phases(block); ++phase)
          for (int t = 0; t < heatmap::kThreads; ++t) kernel.run(phase, block, t, &shared);
      }
    }
  }
};

}  // namespace

void heatmap_phases(const HeatmapParams& p, int /*threads*/) {
  if (heatmap::outputs_of(p) == 0) return;
  with_element(p.dtype, [&](auto element) {
    heatmap::run_kernels<decltype(element)>(
        p, [](void* to, int64_t bytes) { memset(to, 0, static_cast<size_t>(bytes)); }, Loop{});
  });
}

}  // namespace cpu
}  // namespace backsight

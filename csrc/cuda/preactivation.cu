#include "core/preactivation.h"
#include "cuda/rows.cuh"

namespace backsight::cuda {
namespace {

template <typename T, bool kChannelsLast>
void launch_map(cudaStream_t stream, const PreactivationSlice<T>& slice) {
  const View& out = slice.out;
  const int64_t length = kChannelsLast ? out.c : out.size[2];
  const int64_t count = out.n * out.size[0] * out.size[1] * (kChannelsLast ? out.size[2] : out.c);
  if (count * length == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  if (rows_are_aligned(slice.in, kChannelsLast, sizeof(T)) &&
      rows_are_aligned(out, kChannelsLast, sizeof(T))) {
    launch_rows<T, kChannelsLast, kVector>(stream, slice, count, length, "preactivation");
  } else {
    launch_rows<T, kChannelsLast, 1>(stream, slice, count, length, "preactivation");
  }
}

}  // namespace

// One launch a map: each writes its own channels.
void preactivation(void* stream, const PreactivationParams& p) {
  const auto s = static_cast<cudaStream_t>(stream);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    int64_t first = 0;
    for (const View& map : p.maps) {
      const PreactivationSlice<T> slice(p, map, first);
      if (channels_last(p.out)) {
        launch_map<T, true>(s, slice);
      } else {
        launch_map<T, false>(s, slice);
      }
      first += map.c;
    }
  });
}

}  // namespace backsight::cuda

#include "core/rectify.h"
#include "cuda/groups.cuh"

namespace backsight::cuda {
namespace {

template <typename T, bool kWhole>
struct Body {
  Rectify rectify;
  int64_t per_line;
  __device__ void operator()(int64_t i) const {
    const int64_t line = divide(i, per_line);
    rectify.group<T, kWhole>(line, i - line * per_line);
  }
};

}  // namespace

void rectify(void* stream, const RectifyParams& p) {
  const Rectify rectify(p);
  const int64_t per_line = rectify.line_groups(), count = rectify.lines() * per_line;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (rectify.whole_groups()) {
      launch_groups(stream, Body<T, true>{rectify, per_line}, count, "rectify");
    } else {
      launch_groups(stream, Body<T, false>{rectify, per_line}, count, "rectify");
    }
  });
}

}  // namespace backsight::cuda

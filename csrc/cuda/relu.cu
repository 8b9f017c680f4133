#include "core/relu.h"
#include "cuda/groups.cuh"

namespace backsight::cuda {
namespace {

template <typename T, bool kWhole>
struct Body {
  ReluParams p;
  __device__ void operator()(int64_t i) const { relu_group<T, kWhole>(p, i); }
};

}  // namespace

void relu(void* stream, const ReluParams& p) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (whole_groups(p)) {
      launch_groups(stream, Body<T, true>{p}, groups_of(p), "relu");
    } else {
      launch_groups(stream, Body<T, false>{p}, groups_of(p), "relu");
    }
  });
}

}  // namespace backsight::cuda

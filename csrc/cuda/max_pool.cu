#include "core/max_pool.h"
#include "cuda/elements.cuh"

namespace backsight::cuda {
namespace {

template <typename T, typename Switch, bool kChannelsLast>
struct Kernel {
  MaxPoolParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    max_pool_element<T, Switch, kChannelsLast>(p, i);
  }
};

}  // namespace

void max_pool(void* stream, const MaxPoolParams& p) {
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      using T = decltype(t);
      using Switch = decltype(s);
      if (channels_last(p.y)) {
        for_each_element(stream, Kernel<T, Switch, true>{p}, elements_of(p.y), "max_pool");
      } else {
        for_each_element(stream, Kernel<T, Switch, false>{p}, elements_of(p.y), "max_pool");
      }
    });
  });
}

}  // namespace backsight::cuda

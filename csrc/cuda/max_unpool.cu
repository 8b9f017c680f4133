#include "core/max_unpool.h"
#include "cuda/elements.cuh"

namespace backsight::cuda {
namespace {

template <typename Switch, bool kChannelsLast>
struct Check {
  MaxUnpoolParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    check_switch(switch_is_right<Switch, kChannelsLast>(p, i));
  }
};

template <typename T, typename Switch, bool kChannelsLast>
struct Unpool {
  MaxUnpoolParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    max_unpool_element<T, Switch, kChannelsLast>(p, i);
  }
};

template <typename Switch, bool kChannelsLast>
void unpool(void* stream, const MaxUnpoolParams& p) {
  for_each_element(stream, Check<Switch, kChannelsLast>{p}, elements_of(p.y), "max_unpool");
  with_element(p.dtype, [&](auto t) {
    using T = decltype(t);
    for_each_element(stream, Unpool<T, Switch, kChannelsLast>{p}, elements_of(p.x), "max_unpool");
  });
}

}  // namespace

void max_unpool(void* stream, const MaxUnpoolParams& p) {
  with_switch_type(p.switch_bytes, [&](auto s) {
    using Switch = decltype(s);
    channels_last(p.x) ? unpool<Switch, true>(stream, p) : unpool<Switch, false>(stream, p);
  });
}

}  // namespace backsight::cuda

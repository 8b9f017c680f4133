#include "core/max_unpool.h"
#include "cuda/elements.cuh"

namespace backsight::cuda {
namespace {

template <typename T, typename Switch, bool kChannelsLast>
struct Gather {
  MaxUnpoolParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    check_switch(max_gather_element<T, Switch, kChannelsLast>(p, i));
  }
};

}  // namespace

void max_gather(void* stream, const MaxUnpoolParams& p) {
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      using T = decltype(t);
      using Switch = decltype(s);
      if (channels_last(p.y)) {
        for_each_element(stream, Gather<T, Switch, true>{p}, elements_of(p.y), "max_gather");
      } else {
        for_each_element(stream, Gather<T, Switch, false>{p}, elements_of(p.y), "max_gather");
      }
    });
  });
}

}  // namespace backsight::cuda

#include "core/unpool_deconv.h"
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
struct UnpoolDeconv {
  UnpoolDeconvParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    unpool_deconv_element<T, Switch, kChannelsLast>(p, i);
  }
};

}  // namespace

void unpool_deconv(void* stream, const UnpoolDeconvParams& p) {
  const MaxUnpoolParams& u = p.unpool;
  const View& out = p.deconv.out;
  with_switch_type(u.switch_bytes, [&](auto s) {
    using Switch = decltype(s);
    const int64_t windows = elements_of(u.y);
    channels_last(u.y)
        ? for_each_element(stream, Check<Switch, true>{u}, windows, "unpool_deconv")
        : for_each_element(stream, Check<Switch, false>{u}, windows, "unpool_deconv");
    with_element(u.dtype, [&](auto t) {
      using T = decltype(t);
      const int64_t count = elements_of(out);
      channels_last(out)
          ? for_each_element(stream, UnpoolDeconv<T, Switch, true>{p}, count, "unpool_deconv")
          : for_each_element(stream, UnpoolDeconv<T, Switch, false>{p}, count, "unpool_deconv");
    });
  });
}

}  // namespace backsight::cuda

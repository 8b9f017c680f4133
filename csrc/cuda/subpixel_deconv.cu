#include "core/subpixel_deconv.h"
#include "cuda/elements.cuh"

namespace backsight::cuda {
namespace {

template <typename T, bool kChannelsLast>
struct Deconv {
  SubpixelDeconvParams p;
  __device__ __forceinline__ void operator()(int64_t i) const {
    deconv_element<T, kChannelsLast>(p, i);
  }
};

}  // namespace

void subpixel_deconv(void* stream, const SubpixelDeconvParams& p) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const View& out = p.out;
    const int64_t count = out.n * out.c * out.size[0] * out.size[1] * out.size[2];
    if (channels_last(out)) {
      for_each_element(stream, Deconv<T, true>{p}, count, "subpixel_deconv");
    } else {
      for_each_element(stream, Deconv<T, false>{p}, count, "subpixel_deconv");
    }
  });
}

}  // namespace backsight::cuda

// subpixel_deconv: which taps of the filter meet which inputs, and one output of it. See ops.h for
// the definition.
#pragma once

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/preactivation.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

// The taps that meet an input at some output along an axis: `count` of them, the first and every
// pool.cell_step-th after it, which meet `input` and every pool.window_step-th before it. That is
// the output's phase, cut to the inputs that there are.
struct Taps {
  int64_t input;
  int first, count;
};

HD int64_t ceil_divide(int64_t a, int64_t b) {  // a of any sign, b > 0
  return a > 0 ? divide(a + b - 1, b) : -divide(-a, b);
}

// The first tap of the phase that holds place = input * stride + tap * dilation, or a tap beyond
// the filter if there is none.
HD int64_t tap_of_phase(const Pool& pool, int axis, int64_t place) {
  const int64_t stride = pool.stride[axis], dilation = pool.dilation[axis];
  int64_t rest = place - divide(place, stride) * stride;
  if (dilation == 1) return rest;
  const int64_t back = dilation - divide(dilation, stride) * stride;
  int64_t tap = 0;
  ROLLED
  for (; rest != 0; ++tap) {
    if (tap == pool.cell_step[axis]) return pool.kernel[axis];
    rest -= back;
    if (rest < 0) rest += stride;
  }
  return tap;
}

HD Taps taps_at(const SubpixelDeconvParams& p, int axis, int64_t o) {
  const Pool& pool = p.pool;
  const int64_t place = o + pool.padding[axis];
  const int64_t tap = tap_of_phase(pool, axis, place);
  const int64_t ahead = place - tap * pool.dilation[axis];
  if (tap >= pool.kernel[axis] || ahead < 0) return {0, 0, 0};
  const int64_t input = divide(ahead, pool.stride[axis]);
  const int64_t beyond = input - p.x.size[axis] + 1;  // inputs behind the last
  const int64_t skipped = max64(0, ceil_divide(beyond, pool.window_step[axis]));
  const int64_t end = min64(ceil_divide(pool.kernel[axis] - tap, pool.cell_step[axis]),
                            divide(input, pool.window_step[axis]) + 1);
  return {input - skipped * pool.window_step[axis],
          static_cast<int>(tap + skipped * pool.cell_step[axis]),
          static_cast<int>(max64(end - skipped, 0))};
}

// Element i of the output, in the order in which it lies in memory.
template <typename T, bool kChannelsLast>
HD void deconv_element(const SubpixelDeconvParams& p, int64_t i) {
  using Wide = Widened<T>;
  const View &x = p.x, &out = p.out;
  const Pool& pool = p.pool;
  int64_t rest = i, c = 0, at[kAxes], to = 0;
  if (kChannelsLast) {
    rest = divide(i, out.c);
    c = i - rest * out.c;
  }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int64_t outer = divide(rest, out.size[axis]);
    at[axis] = rest - outer * out.size[axis];
    rest = outer;
  }
  if (!kChannelsLast) {
    const int64_t outer = divide(rest, out.c);
    c = rest - outer * out.c;
    rest = outer;
  }
  to = rest * out.stride_n + c * out.stride_c + at[0] * out.stride[0] + at[1] * out.stride[1] +
       at[2] * out.stride[2];
  const Taps z = taps_at(p, 0, at[0]), y = taps_at(p, 1, at[1]), w = taps_at(p, 2, at[2]);
  const int64_t onto = divide(out.c, p.groups), into = divide(x.c, p.groups);
  const int64_t group = divide(c, onto);
  const int64_t filter = pool.kernel[0] * pool.kernel[1] * pool.kernel[2];
  Wide sum = 0;
  ROLLED
  for (int64_t k = 0; k < into; ++k) {
    const int64_t from = group * into + k;
    const T* const map = reinterpret_cast<const T*>(x.data) + rest * x.stride_n + from * x.stride_c;
    const T* const taps =
        reinterpret_cast<const T*>(p.weight) + (from * onto + c - group * onto) * filter;
    ROLLED
    for (int jz = 0; jz < z.count; ++jz) {
      ROLLED
      for (int jy = 0; jy < y.count; ++jy) {
        const T* row = map + (z.input - jz * pool.window_step[0]) * x.stride[0] +
                       (y.input - jy * pool.window_step[1]) * x.stride[1] + w.input * x.stride[2];
        const T* tap = taps + w.first +
                       pool.kernel[2] * (y.first + jy * pool.cell_step[1] +
                                         pool.kernel[1] * (z.first + jz * pool.cell_step[0]));
        ROLLED
        for (int jx = 0; jx < w.count; ++jx) {
          sum = multiply_add(widen(*row), widen(*tap), sum);
          row -= pool.window_step[2] * x.stride[2];
          tap += pool.cell_step[2];
        }
      }
    }
  }
  if (p.bias) sum += widen(reinterpret_cast<const T*>(p.bias)[c]);
  store(p.relu ? rectified(sum) : sum, reinterpret_cast<T*>(out.data) + to);
}

}  // namespace backsight

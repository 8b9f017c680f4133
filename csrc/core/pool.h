// What pools and their adjoints have in common: where the cells of a window lie.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

// Coordinate of cell k of window o on one axis.
HD int64_t cell_at(const Pool& pool, int axis, int64_t o, int64_t k) {
  return o * pool.stride[axis] - pool.padding[axis] + k * pool.dilation[axis];
}

// The cells k of window o that lie inside [0, size) of an axis.
HD Interval cells_inside(const Pool& pool, int64_t size, int axis, int64_t o) {
  const int64_t start = o * pool.stride[axis] - pool.padding[axis];
  const int64_t kernel = pool.kernel[axis], dilation = pool.dilation[axis];
  const int64_t lo = start < 0 ? divide(dilation - 1 - start, dilation) : 0;
  const int64_t room = size - start;  // cells k with k * dilation < room
  const int64_t hi = room <= 0 ? 0 : divide(room + dilation - 1, dilation);
  return {lo, max64(lo, min64(hi, kernel))};
}
HD Interval cells_inside(const Pool& pool, const View& x, int axis, int64_t o) {
  return cells_inside(pool, x.size[axis], axis, o);
}

// Rounds down, for b > 0.
HD int64_t floor_divide(int64_t a, int64_t b) {
  return a >= 0 ? divide(a, b) : -divide(b - 1 - a, b);
}

// The windows of an interval that have a cell at coordinate g of an axis: `count` of them, the
// first being window o, whose cell there is k. From one to the next o grows by window_step and k
// falls by cell_step.
struct Cover {
  int64_t o;
  int k, count;
};
HD Cover windows_over(const Pool& pool, int axis, int64_t g, Interval of) {
  const int64_t at = g + pool.padding[axis], stride = pool.stride[axis];
  const int64_t dilation = pool.dilation[axis], reach = (pool.kernel[axis] - 1) * dilation;
  int64_t lo = max64(of.lo, floor_divide(at - reach + stride - 1, stride));
  const int64_t hi = min64(of.hi, floor_divide(at, stride) + 1);
  if (dilation > 1) {
    // Only one in window_step windows starts a multiple of the dilation before g.
    const int64_t stop = min64(hi, lo + pool.window_step[axis]);
    while (lo < stop && divide(at - lo * stride, dilation) * dilation != at - lo * stride) ++lo;
    if (lo >= stop) return {0, 0, 0};
  }
  if (lo >= hi) return {0, 0, 0};
  return {lo, static_cast<int>(divide(at - lo * stride, dilation)),
          static_cast<int>(divide(hi - 1 - lo, pool.window_step[axis])) + 1};
}

HD int64_t cells_of(const Pool& pool) { return pool.kernel[0] * pool.kernel[1] * pool.kernel[2]; }

// Offset of a cell in its window.
HD int64_t offset_of(const Pool& pool, int64_t kd, int64_t kh, int64_t kw) {
  return (kd * pool.kernel[1] + kh) * pool.kernel[2] + kw;
}

struct Element {
  int64_t n, c, at[kAxes];
};

// Element i of a dense array, counted in the order in which they lie in memory.
template <bool kChannelsLast>
HD Element element(const View& v, int64_t i) {
  Element e;
  if (kChannelsLast) {
    const int64_t rest = divide(i, v.c);
    e.c = i - rest * v.c;
    i = rest;
  }
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const int64_t rest = divide(i, v.size[axis]);
    e.at[axis] = i - rest * v.size[axis];
    i = rest;
  }
  if (kChannelsLast) {
    e.n = i;
  } else {
    e.n = divide(i, v.c);
    e.c = i - e.n * v.c;
  }
  return e;
}

HD int64_t elements_of(const View& v) { return v.n * v.c * v.size[0] * v.size[1] * v.size[2]; }

// Calls run(Switch{}) with the type of the switches.
template <typename Run>
void with_switch_type(int bytes, const Run& run) {
  switch (bytes) {
    case 1: return run(uint8_t{});
    case 2: return run(int16_t{});
    default: return run(int32_t{});
  }
}

}  // namespace backsight

// max_pool: which cell of a window is its maximum. See ops.h for the definition.
#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/pool.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

// Whether `x` replaces `best` as the maximum of the cells up to x: ties stay with the first, NaNs
// go to the last. V is a float or double, or a vector of them.
template <typename V>
HD auto is_new_maximum(const V& x, const V& best) {
  return (x > best) | (x != x);
}

// Cells of a window on one axis, half-open.
struct Cells {
  int lo, hi;
};

// Element i of the output, counted in the order in which they lie in memory.
template <typename T, typename Switch, bool kChannelsLast>
HD void max_pool_element(const MaxPoolParams& p, int64_t i) {
  const Element e = element<kChannelsLast>(p.y, i);
  const T* from = reinterpret_cast<const T*>(p.x.data) + e.n * p.x.stride_n + e.c * p.x.stride_c;
  Cells cells[kAxes];
  for (int axis = 0; axis < kAxes; ++axis) {
    const Interval inside = cells_inside(p.pool, p.x, axis, e.at[axis]);
    cells[axis] = {static_cast<int>(inside.lo), static_cast<int>(inside.hi)};
    from += cell_at(p.pool, axis, e.at[axis], 0) * p.x.stride[axis];
  }
  using Wide = Widened<T>;
  Wide best = p.relu ? Wide{0} : -static_cast<Wide>(__builtin_inf());
  T y;
  store(best, &y);
  const int height = static_cast<int>(p.pool.kernel[1]), width = static_cast<int>(p.pool.kernel[2]);
  int offset = (cells[0].lo * height + cells[1].lo) * width + cells[2].lo;
  ROLLED
  for (int kd = cells[0].lo; kd < cells[0].hi; ++kd) {
    const T* const slice = from + kd * p.pool.dilation[0] * p.x.stride[0];
    ROLLED
    for (int kh = cells[1].lo; kh < cells[1].hi; ++kh) {
      const T* const row = slice + kh * p.pool.dilation[1] * p.x.stride[1];
      ROLLED
      for (int kw = cells[2].lo; kw < cells[2].hi; ++kw) {
        const T x = row[kw * p.pool.dilation[2] * p.x.stride[2]];
        if (is_new_maximum<Wide>(widen(x), best)) {
          best = widen(x);
          y = x;
          offset = (kd * height + kh) * width + kw;
        }
      }
    }
  }
  reinterpret_cast<T*>(p.y.data)[i] = y;
  reinterpret_cast<Switch*>(p.switches.data)[i] = static_cast<Switch>(offset);
}

}  // namespace backsight

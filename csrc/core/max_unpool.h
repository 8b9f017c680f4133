// max_unpool and max_gather: which windows' switches point to a cell. See ops.h for the definition.
#pragma once

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/pool.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

// Where entry b lies in its map along an axis. What lies beyond all windows lies beyond them at the
// next place just as well, whose products do not overflow.
HD int64_t first_window(const MaxUnpoolParams& p, int64_t b, int axis) {
  const int column = axis - (kAxes - p.dims);
  if (!p.base_index || column < 0) return 0;
  return max64(-p.y.size[axis], min64(p.y_at[b * p.dims + column], p.switches.size[axis]));
}
HD int64_t first_cell(const MaxUnpoolParams& p, int64_t b, int axis) {
  const int column = axis - (kAxes - p.dims);
  if (!p.base_index || column < 0) return 0;
  const int64_t end =
      p.switches.size[axis] * p.pool.stride[axis] + p.pool.kernel[axis] * p.pool.dilation[axis];
  return max64(-p.pool.padding[axis] - p.x.size[axis],
               min64(p.window_at[b * p.dims + column], end));
}
// The windows of the map that y holds.
HD Interval windows_held(const MaxUnpoolParams& p, int64_t b, int axis) {
  const int64_t at = first_window(p, b, axis);
  const Interval held = clip(-at, p.switches.size[axis] - at, p.y.size[axis]);
  return {held.lo + at, held.hi + at};
}
HD int64_t map_of(const MaxUnpoolParams& p, int64_t b) {
  return p.base_index ? p.base_index[b] : b;
}
HD bool has_map(const MaxUnpoolParams& p, int64_t b) {
  return !p.base_index || (0 <= p.base_index[b] && p.base_index[b] < p.switches.n);
}

// A cell of a window, by its offset.
struct Cell {
  int64_t k[kAxes];
};
HD Cell cell_of_offset(const Pool& pool, int64_t offset) {
  const int64_t row = divide(offset, pool.kernel[2]), slice = divide(row, pool.kernel[1]);
  return {{slice, row - slice * pool.kernel[1], offset - row * pool.kernel[2]}};
}

// The cell of entry b of x that offset `offset` of window o is, in elements from entry b's start;
// -1 if it is none.
HD int64_t cell_of_x(const MaxUnpoolParams& p, int64_t b, const int64_t (&o)[kAxes],
                     int64_t offset) {
  const Cell cell = cell_of_offset(p.pool, offset);
  int64_t from = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t at = cell_at(p.pool, axis, o[axis], cell.k[axis]) - first_cell(p, b, axis);
    if (at < 0 || at >= p.x.size[axis]) return -1;
    from += at * p.x.stride[axis];
  }
  return from;
}

// The windows over a cell of the map that y holds, and the first of them in elements of y and of
// switches, counted from channel 0 of the entry and of its map.
struct CellWindows {
  Cover over[kAxes];
  int64_t y, switches;
};
HD CellWindows windows_over_cell(const MaxUnpoolParams& p, int64_t b, const int64_t (&g)[kAxes]) {
  CellWindows windows;
  windows.y = windows.switches = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Cover over = windows_over(p.pool, axis, g[axis], windows_held(p, b, axis));
    windows.over[axis] = over;
    windows.y += (over.o - first_window(p, b, axis)) * p.y.stride[axis];
    windows.switches += over.o * p.switches.stride[axis];
  }
  return windows;
}

// Calls visit(element of y, of switches, offset of the cell in the window) for these windows, in
// raster order.
template <typename Visit>
HD void for_windows(const MaxUnpoolParams& p, const CellWindows& windows, const Visit& visit) {
  const Cover(&over)[kAxes] = windows.over;
  const int height = static_cast<int>(p.pool.kernel[1]), width = static_cast<int>(p.pool.kernel[2]);
  int depth_k = over[0].k;
  ROLLED
  for (int d = 0; d < over[0].count; ++d, depth_k -= static_cast<int>(p.pool.cell_step[0])) {
    int height_k = over[1].k;
    ROLLED
    for (int h = 0; h < over[1].count; ++h, height_k -= static_cast<int>(p.pool.cell_step[1])) {
      int offset = (depth_k * height + height_k) * width + over[2].k;
      const int64_t row = d * p.pool.window_step[0], column = h * p.pool.window_step[1];
      int64_t to = windows.y + row * p.y.stride[0] + column * p.y.stride[1];
      int64_t at = windows.switches + row * p.switches.stride[0] + column * p.switches.stride[1];
      ROLLED
      for (int w = 0; w < over[2].count; ++w, offset -= static_cast<int>(p.pool.cell_step[2])) {
        visit(to, at, offset);
        to += p.pool.window_step[2] * p.y.stride[2];
        at += p.pool.window_step[2] * p.switches.stride[2];
      }
    }
  }
}

// The cell under these windows, of the channel that y and switches begin with.
template <typename T, typename Switch>
HD T unpooled(const MaxUnpoolParams& p, const CellWindows& windows, const T* y,
              const Switch* switches) {
  using Wide = Widened<T>;
  T last{};
  Wide sum = 0;
  for_windows(p, windows, [&](int64_t from, int64_t at, int offset) {
    if (switches[at] != offset) return;
    last = y[from];
    sum += widen(last);
  });
  if (!p.set) store(sum, &last);
  if (p.relu && widen(last) < 0) last = T{};
  return last;
}

// Element i of x, counted in the order in which they lie in memory.
template <typename T, typename Switch, bool kChannelsLast>
HD void max_unpool_element(const MaxUnpoolParams& p, int64_t i) {
  const Element e = element<kChannelsLast>(p.x, i);
  T last{};
  if (has_map(p, e.n)) {
    const int64_t g[kAxes] = {e.at[0] + first_cell(p, e.n, 0), e.at[1] + first_cell(p, e.n, 1),
                              e.at[2] + first_cell(p, e.n, 2)};
    const T* const y =
        reinterpret_cast<const T*>(p.y.data) + e.n * p.y.stride_n + e.c * p.y.stride_c;
    const Switch* const switches = reinterpret_cast<const Switch*>(p.switches.data) +
                                   map_of(p, e.n) * p.switches.stride_n + e.c * p.switches.stride_c;
    last = unpooled(p, windows_over_cell(p, e.n, g), y, switches);
  }
  reinterpret_cast<T*>(p.x.data)[i] = last;
}

// Calls visit(element, window o of the map, element of switches, offset) for element i of y, if its
// map has that window; returns what that returns, or true. False if there is no such map.
template <typename Switch, bool kChannelsLast, typename Visit>
HD bool see_switch(const MaxUnpoolParams& p, int64_t i, const Visit& visit) {
  const Element e = element<kChannelsLast>(p.y, i);
  if (!has_map(p, e.n)) return false;
  int64_t o[kAxes], at = map_of(p, e.n) * p.switches.stride_n + e.c * p.switches.stride_c;
  for (int axis = 0; axis < kAxes; ++axis) {
    o[axis] = e.at[axis] + first_window(p, e.n, axis);
    if (!contains({0, p.switches.size[axis]}, o[axis])) return true;
    at += o[axis] * p.switches.stride[axis];
  }
  return visit(e, o, at, int64_t{reinterpret_cast<const Switch*>(p.switches.data)[at]});
}

HD bool is_right(const MaxUnpoolParams& p, const Element& e, const int64_t (&o)[kAxes],
                 int64_t offset) {
  return 0 <= offset && offset < cells_of(p.pool) &&
         (p.base_index || cell_of_x(p, e.n, o, offset) >= 0);
}

// Whether the switch of element i of y is right.
template <typename Switch, bool kChannelsLast>
HD bool switch_is_right(const MaxUnpoolParams& p, int64_t i) {
  return see_switch<Switch, kChannelsLast>(
      p, i, [&](const Element& e, const int64_t (&o)[kAxes], int64_t, int64_t offset) {
        return is_right(p, e, o, offset);
      });
}

// Element i of y of max_gather; false if its switch is an error.
template <typename T, typename Switch, bool kChannelsLast>
HD bool max_gather_element(const MaxUnpoolParams& p, int64_t i) {
  T y{};
  const bool right = see_switch<Switch, kChannelsLast>(
      p, i, [&](const Element& e, const int64_t (&o)[kAxes], int64_t at, int64_t offset) {
        if (offset < 0 || offset >= cells_of(p.pool)) return false;
        const int64_t from = cell_of_x(p, e.n, o, offset);
        if (from < 0) return p.base_index != nullptr;
        bool loses = false;
        if (p.set) {
          const Cell cell = cell_of_offset(p.pool, offset);
          const int64_t g[kAxes] = {cell_at(p.pool, 0, o[0], cell.k[0]),
                                    cell_at(p.pool, 1, o[1], cell.k[1]),
                                    cell_at(p.pool, 2, o[2], cell.k[2])};
          const int64_t start = map_of(p, e.n) * p.switches.stride_n + e.c * p.switches.stride_c;
          const Switch* const switches = reinterpret_cast<const Switch*>(p.switches.data) + start;
          const CellWindows windows = windows_over_cell(p, e.n, g);
          for_windows(p, windows, [&](int64_t, int64_t other, int its_offset) {
            // Of one channel, later in raster order is later in memory.
            loses = loses || (other > at - start && switches[other] == its_offset);
          });
        }
        if (!loses)
          y = reinterpret_cast<const T*>(p.x.data)[e.n * p.x.stride_n + e.c * p.x.stride_c + from];
        return true;
      });
  reinterpret_cast<T*>(p.y.data)[i] = y;
  return right;
}

}  // namespace backsight

// The windows over the cells of a map that is unpooled.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/max_unpool.h"

namespace backsight::cpu {

// A window over a cell, or over each of several cells side by side.
struct Window {
  int64_t y, switches;  // elements from somewhere
  int64_t offset;       // of the cell in the window
};

inline Cover windows_over(const MaxUnpoolParams& p, int64_t b, int axis, int64_t x) {
  return backsight::windows_over(p.pool, axis, x + first_cell(p, b, axis),
                                 windows_held(p, b, axis));
}

// The windows over the cells of an entry of x. Cells whose windows are the same but for their place
// share a list of them.
class WindowLists {
 public:
  // Whether they would be the same for entry b.
  bool fit(int64_t b) const {
    for (int axis = 0; axis < kAxes; ++axis)
      if (shift(b, axis) != shift_[axis] || !same(held(b, axis), held_[axis])) return false;
    return true;
  }

  // Steps are elements from window to window on the axes, in y and switches. With numbered_slices
  // the slices of windows over a cell lie next to each other.
  WindowLists(const MaxUnpoolParams& p, int64_t b, const std::array<int64_t, kAxes>& y_step,
              const std::array<int64_t, kAxes>& switch_step, bool numbered_slices)
      : p_(p) {
    for (int axis = 0; axis < kAxes; ++axis) {
      shift_[axis] = shift(b, axis);
      held_[axis] = held(b, axis);
      const int64_t step = axis == 0 && numbered_slices ? 1 : p.pool.window_step[axis];
      y_step_[axis] = step * y_step[axis];
      switch_step_[axis] = step * switch_step[axis];
      for (int64_t x = 0; x < p.x.size[axis]; ++x) {
        Cover cover = windows_over(p, b, axis, x);
        if (cover.count > 0) cover.o -= first_window(p, b, axis);
        int kind = 0;
        while (kind < kinds(axis) && !same(covers_[axis][static_cast<size_t>(kind)], cover)) ++kind;
        if (kind == kinds(axis)) covers_[axis].push_back(cover);
        cells_[axis].push_back({kind, cover.o});
      }
    }
    lists_.resize(static_cast<size_t>(kinds(0)) * kinds(1) * kinds(2));
  }

  // The kind of cell x of an axis, and the first window of y over it, 0 if there is none.
  struct AxisCell {
    int kind;
    int64_t o;
  };
  AxisCell cell(int axis, int64_t x) const { return cells_[axis][static_cast<size_t>(x)]; }
  const Cover& cover(int axis, int kind) const { return covers_[axis][static_cast<size_t>(kind)]; }

  // What is over cells of these kinds, counted from the first window over them.
  const std::vector<Window>& list(int depth, int height, int width) {
    auto& list = lists_[(static_cast<size_t>(depth) * kinds(1) + height) * kinds(2) + width];
    const Cover &ds = cover(0, depth), &hs = cover(1, height), &ws = cover(2, width);
    if (!list.empty() || ds.count * hs.count * ws.count == 0) return list;
    const auto k = [&](int axis, const Cover& over, int i) {
      return over.k - i * p_.pool.cell_step[axis];
    };
    for (int d = 0; d < ds.count; ++d)
      for (int h = 0; h < hs.count; ++h)
        for (int w = 0; w < ws.count; ++w)
          list.push_back({d * y_step_[0] + h * y_step_[1] + w * y_step_[2],
                          d * switch_step_[0] + h * switch_step_[1] + w * switch_step_[2],
                          offset_of(p_.pool, k(0, ds, d), k(1, hs, h), k(2, ws, w))});
    return list;
  }

 private:
  int kinds(int axis) const { return static_cast<int>(covers_[axis].size()); }
  static bool same(const Cover& a, const Cover& b) {
    return a.count == b.count && (a.count == 0 || a.k == b.k);
  }
  static bool same(Interval a, Interval b) { return a.lo == b.lo && a.hi == b.hi; }
  // Where x lies, seen from the windows of y; and which of y's windows there are.
  int64_t shift(int64_t b, int axis) const {
    return first_cell(p_, b, axis) - first_window(p_, b, axis) * p_.pool.stride[axis];
  }
  Interval held(int64_t b, int axis) const {
    const Interval windows = windows_held(p_, b, axis);
    const int64_t at = first_window(p_, b, axis);
    return {windows.lo - at, windows.hi - at};
  }

  const MaxUnpoolParams& p_;
  int64_t shift_[kAxes];
  Interval held_[kAxes];
  int64_t y_step_[kAxes], switch_step_[kAxes];
  std::vector<Cover> covers_[kAxes];  // of each kind
  std::vector<AxisCell> cells_[kAxes];
  std::vector<std::vector<Window>> lists_;  // of each combination of kinds; empty until it is used
};

}  // namespace backsight::cpu

// occlude: which cells of a row are replaced. See ops.h for the definition.
#pragma once

#include "core/hd.h"
#include "core/interval.h"
#include "ops.h"

namespace backsight {

// A box cut to the image.
struct OccludeBox {
  Interval depth, height, width;
};

HD Interval occlude_axis(const OccludeParams& p, int64_t n, int axis) {
  const int column = axis - (kAxes - p.dims);
  if (column < 0) return {0, 1};
  const int64_t* box = p.boxes + n * 2 * p.dims;
  return clip(box[column], box[column + p.dims], p.out.size[axis]);
}

HD OccludeBox occlude_box(const OccludeParams& p, int64_t n) {
  return {occlude_axis(p, n, 0), occlude_axis(p, n, 1), occlude_axis(p, n, 2)};
}

// The cells of row (z, y) that lie in the box.
HD Interval occlude_row(const OccludeBox& box, int64_t z, int64_t y) {
  if (contains(box.depth, z) && contains(box.height, y)) return box.width;
  return {0, 0};
}

}  // namespace backsight

// occlude: which cells of an image are replaced. See ops.h for the definition.
#pragma once

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

class OccludeRows {
 public:
  explicit OccludeRows(const OccludeParams& p)
      : p_(p),
        image_(p.image, backsight::element_size(p.dtype)),
        baseline_(p.baseline, backsight::element_size(p.dtype)) {}

  HD const View& out() const { return p_.out; }
  HD int64_t element_size() const { return image_.element_size; }

  struct Window {
    Interval depth, height, width;  // the box, cut to the image
    int64_t image;
  };
  HD Window window(int64_t n) const {
    const int64_t box = n % p_.copies;
    return {axis(box, 0), axis(box, 1), axis(box, 2), n / p_.copies};
  }

  struct Row {
    Interval in;                            // the box
    int64_t image_offset, baseline_offset;  // elements, of the first cell
  };
  HD Row row(const Window& w, int64_t, int64_t c, int64_t z, int64_t y) const {
    const bool in = contains(w.depth, z) && contains(w.height, y);
    return {in ? w.width : Interval{0, 0}, row_offset(p_.image, w.image, c, z, y),
            row_offset(p_.baseline, w.image, c, z, y)};
  }

  HD Piece piece(const Window&, const Row& row, int64_t x) const {
    if (contains(row.in, x))
      return baseline_.piece(row.baseline_offset + x * p_.baseline.stride[2], row.in.hi);
    return image_.piece(row.image_offset + x * p_.image.stride[2],
                        x < row.in.lo ? row.in.lo : p_.out.size[2]);
  }

 private:
  HD Interval axis(int64_t n, int d) const {
    const int column = d - (kAxes - p_.dims);
    if (column < 0) return {0, 1};
    const int64_t* box = p_.boxes + n * 2 * p_.dims;
    return clip(box[column], box[column + p_.dims], p_.out.size[d]);
  }

  OccludeParams p_;
  Source image_, baseline_;
};

}  // namespace backsight

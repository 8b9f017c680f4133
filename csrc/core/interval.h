// Half-open intervals of cells along one axis, and where a row of cells lies in an array.
#pragma once

#include "core/hd.h"
#include "ops.h"

namespace backsight {

struct Interval {
  int64_t lo, hi;  // half-open
};

HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
HD int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// [lo, hi) cut to [0, size); what is empty stays empty.
HD Interval clip(int64_t lo, int64_t hi, int64_t size) {
  lo = min64(max64(lo, 0), size);
  return {lo, min64(max64(hi, lo), size)};
}

HD bool contains(Interval range, int64_t i) { return range.lo <= i && i < range.hi; }

// Elements from the start of `v` to the first cell of a row.
HD int64_t row_offset(const View& v, int64_t n, int64_t c, int64_t z, int64_t y) {
  return n * v.stride_n + c * v.stride_c + z * v.stride[0] + y * v.stride[1];
}

}  // namespace backsight

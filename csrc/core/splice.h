// splice: which source each cell of a window is copied from. See ops.h for the definition.
#pragma once

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

class SpliceRows {
 public:
  explicit SpliceRows(const SpliceParams& p)
      : p_(p),
        base_(p.base, backsight::element_size(p.dtype)),
        patch_(p.patch, backsight::element_size(p.dtype)),
        outside_(bits_of(p.outside, p.dtype)),
        nan_(bits_of(__builtin_nan(""), p.dtype)) {}

  HD const View& out() const { return p_.out; }
  HD int64_t element_size() const { return base_.element_size; }

  // What covers one axis of a window, in the window's own coordinates.
  struct Axis {
    Interval inside;  // the map
    Interval patch, tile;
    int64_t patch_shift;  // window coordinate + shift = coordinate in the patch
    int64_t tile_shift;   // likewise in the tile
  };
  struct Window {
    Axis depth, height, width;
    int64_t m;  // the map it reads
    bool has_base;
  };
  HD Window window(int64_t n) const {
    const int64_t m = p_.base_index[n];
    return {axis(n, 0), axis(n, 1), axis(n, 2), m, 0 <= m && m < p_.base.n};
  }

  struct Row {
    bool inside, patch, tile;           // whether the outer coordinates lie in the map, patch, tile
    int64_t patch_offset, base_offset;  // elements, of the cell at the window's first column
  };
  HD Row row(const Window& w, int64_t n, int64_t c, int64_t z, int64_t y) const {
    return {contains(w.depth.inside, z) && contains(w.height.inside, y),
            contains(w.depth.patch, z) && contains(w.height.patch, y),
            w.has_base && contains(w.depth.tile, z) && contains(w.height.tile, y),
            row_offset(p_.patch, n, c, z + w.depth.patch_shift, y + w.height.patch_shift) +
                w.width.patch_shift * p_.patch.stride[2],
            row_offset(p_.base, w.m, c, z + w.depth.tile_shift, y + w.height.tile_shift) +
                w.width.tile_shift * p_.base.stride[2]};
  }

  HD Piece piece(const Window& w, const Row& row, int64_t x) const {
    const Axis& width = w.width;
    if (!row.inside || x >= width.inside.hi) return constant(outside_, p_.out.size[2]);
    if (x < width.inside.lo) return constant(outside_, width.inside.lo);
    int64_t end = width.inside.hi;
    if (row.patch) {
      if (contains(width.patch, x))
        return patch_.piece(row.patch_offset + x * p_.patch.stride[2], min64(end, width.patch.hi));
      if (x < width.patch.lo) end = min64(end, width.patch.lo);
    }
    if (row.tile) {
      if (contains(width.tile, x))
        return base_.piece(row.base_offset + x * p_.base.stride[2], min64(end, width.tile.hi));
      if (x < width.tile.lo) end = min64(end, width.tile.lo);
    }
    return constant(nan_, end);
  }

 private:
  HD Axis axis(int64_t n, int d) const {
    const int column = d - (kAxes - p_.dims);
    const int64_t window_at = column < 0 ? 0 : p_.window_at[n * p_.dims + column];
    const int64_t patch_at = column < 0 ? 0 : p_.patch_at[n * p_.dims + column];
    const int64_t size = p_.out.size[d];
    const int64_t patch_shift = window_at - patch_at;
    const int64_t tile_shift = window_at - p_.base_at[d];
    return {clip(-window_at, p_.extent[d] - window_at, size),
            clip(-patch_shift, p_.patch.size[d] - patch_shift, size),
            clip(-tile_shift, p_.base.size[d] - tile_shift, size), patch_shift, tile_shift};
  }

  SpliceParams p_;
  Source base_, patch_;
  uint64_t outside_, nan_;
};

}  // namespace backsight

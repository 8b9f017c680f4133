// splice: which source each cell of a window is copied from. See ops.h for the definition.
#pragma once

#include "core/hd.h"
#include "core/interval.h"
#include "ops.h"

namespace backsight {

// What covers one axis of one window, in the window's own coordinates.
struct SpliceAxis {
  Interval inside;  // the map
  Interval patch;
  Interval tile;
  int64_t patch_shift;  // window coordinate + shift = coordinate in the patch
  int64_t tile_shift;   // likewise in the tile
};

HD SpliceAxis splice_axis(const SpliceParams& p, int64_t b, int axis) {
  const int column = axis - (kAxes - p.dims);
  const int64_t window_at = column < 0 ? 0 : p.window_at[b * p.dims + column];
  const int64_t patch_at = column < 0 ? 0 : p.patch_at[b * p.dims + column];
  const int64_t size = p.out.size[axis];
  const int64_t patch_shift = window_at - patch_at;
  const int64_t tile_shift = window_at - p.base_at[axis];
  return {clip(-window_at, p.extent[axis] - window_at, size),
          clip(-patch_shift, p.patch.size[axis] - patch_shift, size),
          clip(-tile_shift, p.base.size[axis] - tile_shift, size), patch_shift, tile_shift};
}

// Whether the outer coordinates of a row lie in the map, the patch and the tile.
struct SpliceRow {
  bool inside, patch, tile;
};

HD SpliceRow splice_row(const SpliceAxis& depth, const SpliceAxis& height, bool has_base, int64_t z,
                        int64_t y) {
  return {contains(depth.inside, z) && contains(height.inside, y),
          contains(depth.patch, z) && contains(height.patch, y),
          has_base && contains(depth.tile, z) && contains(height.tile, y)};
}

enum class Source { kOutside, kPatch, kBase, kNothing };

// Cells [i, end) of a row, i being the cell asked about, that share one source.
struct Span {
  Source source;
  int64_t end;
};

HD Span splice_span(const SpliceAxis& width, SpliceRow row, int64_t i, int64_t size) {
  if (!row.inside || i >= width.inside.hi) return {Source::kOutside, size};
  if (i < width.inside.lo) return {Source::kOutside, width.inside.lo};
  int64_t end = width.inside.hi;
  if (row.patch) {
    if (contains(width.patch, i)) return {Source::kPatch, min64(end, width.patch.hi)};
    if (i < width.patch.lo) end = min64(end, width.patch.lo);
  }
  if (row.tile) {
    if (contains(width.tile, i)) return {Source::kBase, min64(end, width.tile.hi)};
    if (i < width.tile.lo) end = min64(end, width.tile.lo);
  }
  return {Source::kNothing, end};
}

}  // namespace backsight

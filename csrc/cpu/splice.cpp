#include "core/splice.h"

#include "core/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

// The windows' axes and base map; constant along a window.
struct Window {
  SpliceAxis depth, height, width;
  int64_t base_index;
  bool has_base;
};

HD Window window_of(const SpliceParams& p, int64_t b) {
  const int64_t m = p.base_index[b];
  return {splice_axis(p, b, 0), splice_axis(p, b, 1), splice_axis(p, b, 2), m,
          0 <= m && m < p.base.n};
}

template <typename T, bool kChannelsLast, bool kStream>
HD void write_row(Writer<kStream>& out, const SpliceParams& p, const Window& w, int64_t b,
                  int64_t c, int64_t z, int64_t y, T outside, T nan) {
  const int64_t size = p.out.size[2];
  const int64_t channels = kChannelsLast ? p.out.c : 1;
  const SpliceRow row = splice_row(w.depth, w.height, w.has_base, z, y);
  for (int64_t x = 0; x < size;) {
    const Span span = splice_span(w.width, row, x, size);
    const int64_t cells = span.end - x;
    switch (span.source) {
      case Source::kOutside:
        out.fill(outside, cells * channels);
        break;
      case Source::kNothing:
        out.fill(nan, cells * channels);
        break;
      case Source::kPatch: {
        const T* from =
            reinterpret_cast<const T*>(p.patch.data) +
            row_offset(p.patch, b, c, z + w.depth.patch_shift, y + w.height.patch_shift) +
            (x + w.width.patch_shift) * p.patch.stride[2];
        write_cells<T, kChannelsLast>(out, from, cells, p.patch.stride[2], channels,
                                      p.patch.stride_c);
        break;
      }
      case Source::kBase: {
        const T* from =
            reinterpret_cast<const T*>(p.base.data) +
            row_offset(p.base, w.base_index, c, z + w.depth.tile_shift, y + w.height.tile_shift) +
            (x + w.width.tile_shift) * p.base.stride[2];
        write_cells<T, kChannelsLast>(out, from, cells, p.base.stride[2], channels,
                                      p.base.stride_c);
        break;
      }
    }
    x = span.end;
  }
}

// Rows [begin, end) in the order in which they lie in memory.
template <typename T, bool kChannelsLast, bool kStream>
HD void write_rows(const SpliceParams& p, int64_t begin, int64_t end) {
  const T outside = static_cast<T>(bits_of(p.outside, p.dtype));
  const T nan = static_cast<T>(bits_of(__builtin_nan(""), p.dtype));
  const int64_t depth = p.out.size[0], height = p.out.size[1];
  const int64_t planes = kChannelsLast ? 1 : p.out.c;
  const int64_t row_elements = p.out.size[2] * (kChannelsLast ? p.out.c : 1);
  int64_t y = begin % height, z = begin / height % depth;
  int64_t c = begin / height / depth % planes, b = begin / height / depth / planes;
  Writer<kStream> out(p.out.data + begin * row_elements * static_cast<int64_t>(sizeof(T)));
  Window w = window_of(p, b);
  for (int64_t i = begin; i < end; ++i) {
    write_row<T, kChannelsLast>(out, p, w, b, c, z, y, outside, nan);
    if (++y < height) continue;
    y = 0;
    if (++z < depth) continue;
    z = 0;
    if (++c < planes) continue;
    c = 0;
    if (++b < p.out.n) w = window_of(p, b);
  }
  out.finish();
}

template <typename T>
HD void write_rows(const SpliceParams& p, bool channels_last, bool stream, int64_t begin,
                   int64_t end) {
  if (channels_last) {
    stream ? write_rows<T, true, true>(p, begin, end) : write_rows<T, true, false>(p, begin, end);
  } else {
    stream ? write_rows<T, false, true>(p, begin, end) : write_rows<T, false, false>(p, begin, end);
  }
}

BACKSIGHT_CLONES void splice_rows(const SpliceParams& p, bool channels_last, bool stream,
                                  int64_t begin, int64_t end) {
  switch (element_size(p.dtype)) {
    case 2:
      return write_rows<uint16_t>(p, channels_last, stream, begin, end);
    case 4:
      return write_rows<uint32_t>(p, channels_last, stream, begin, end);
    default:
      return write_rows<uint64_t>(p, channels_last, stream, begin, end);
  }
}

}  // namespace

void splice(const SpliceParams& p, int threads) {
  const int64_t rows = p.out.n * p.out.size[0] * p.out.size[1];
  const int64_t bytes = rows * p.out.size[2] * p.out.c * element_size(p.dtype);
  if (bytes == 0) return;
  const bool channels_last = p.out.stride_c == 1 && p.out.c > 1;
  parallel_chunks(channels_last ? rows : rows * p.out.c, bytes, threads,
                  [&](int64_t begin, int64_t end) {
                    splice_rows(p, channels_last, bytes >= kStreamBytes, begin, end);
                  });
}

}  // namespace backsight::cpu

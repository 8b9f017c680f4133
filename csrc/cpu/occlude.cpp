#include "core/occlude.h"

#include "core/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

// Cells [begin, end) of row (z, y) of image b.
template <typename T, bool kChannelsLast, bool kStream>
HD void write_part(Writer<kStream>& out, const View& from, int64_t channels, int64_t b, int64_t c,
                   int64_t z, int64_t y, int64_t begin, int64_t end) {
  if (begin == end) return;
  const T* row = reinterpret_cast<const T*>(from.data) + row_offset(from, b, c, z, y);
  write_cells<T, kChannelsLast>(out, row + begin * from.stride[2], end - begin, from.stride[2],
                                channels, from.stride_c);
}

// Rows [begin, end) in the order in which they lie in memory.
template <typename T, bool kChannelsLast, bool kStream>
HD void write_rows(const OccludeParams& p, int64_t begin, int64_t end) {
  const int64_t depth = p.out.size[0], height = p.out.size[1], width = p.out.size[2];
  const int64_t planes = kChannelsLast ? 1 : p.out.c;
  const int64_t channels = kChannelsLast ? p.out.c : 1;
  int64_t y = begin % height, z = begin / height % depth;
  int64_t c = begin / height / depth % planes, row = begin / height / depth / planes;
  Writer<kStream> out(p.out.data + begin * width * channels * static_cast<int64_t>(sizeof(T)));
  OccludeBox box = occlude_box(p, row % p.copies);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = row / p.copies;
    const Interval in = occlude_row(box, z, y);
    write_part<T, kChannelsLast>(out, p.image, channels, b, c, z, y, 0, in.lo);
    write_part<T, kChannelsLast>(out, p.baseline, channels, b, c, z, y, in.lo, in.hi);
    write_part<T, kChannelsLast>(out, p.image, channels, b, c, z, y, in.hi, width);
    if (++y < height) continue;
    y = 0;
    if (++z < depth) continue;
    z = 0;
    if (++c < planes) continue;
    c = 0;
    if (++row < p.out.n) box = occlude_box(p, row % p.copies);
  }
  out.finish();
}

template <typename T>
HD void write_rows(const OccludeParams& p, bool channels_last, bool stream, int64_t begin,
                   int64_t end) {
  if (channels_last) {
    stream ? write_rows<T, true, true>(p, begin, end) : write_rows<T, true, false>(p, begin, end);
  } else {
    stream ? write_rows<T, false, true>(p, begin, end) : write_rows<T, false, false>(p, begin, end);
  }
}

BACKSIGHT_CLONES void occlude_rows(const OccludeParams& p, bool channels_last, bool stream,
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

void occlude(const OccludeParams& p, int threads) {
  const int64_t rows = p.out.n * p.out.size[0] * p.out.size[1];
  const int64_t bytes = rows * p.out.size[2] * p.out.c * element_size(p.dtype);
  if (bytes == 0) return;
  const bool channels_last = p.out.stride_c == 1 && p.out.c > 1;
  parallel_chunks(channels_last ? rows : rows * p.out.c, bytes, threads,
                  [&](int64_t begin, int64_t end) {
                    occlude_rows(p, channels_last, bytes >= kStreamBytes, begin, end);
                  });
}

}  // namespace backsight::cpu

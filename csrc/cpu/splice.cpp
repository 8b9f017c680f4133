#include "core/splice.h"

#include "core/dtype.h"
#include "cpu/runs.h"

namespace backsight::cpu {

void splice(const SpliceParams& p, int threads) {
  const uint64_t outside = bits_of(p.outside, p.dtype);
  const uint64_t nan = bits_of(__builtin_nan(""), p.dtype);
  const auto describe = [&](Runs& runs, int64_t b, int64_t begin, int64_t end) {
    const SpliceAxis depth = splice_axis(p, b, 0), height = splice_axis(p, b, 1),
                     width = splice_axis(p, b, 2);
    const int64_t m = p.base_index[b];
    const bool has_base = 0 <= m && m < p.base.n;
    const int64_t size = p.out.size[2];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t z = r / p.out.size[1], y = r % p.out.size[1];
      const SpliceRow row = splice_row(depth, height, has_base, z, y);
      for (int64_t x = 0, cells; x < size; x += cells) {
        const Span span = splice_span(width, row, x, size);
        cells = span.end - x;
        switch (span.source) {
          case Source::kOutside:
            runs.fill(&outside, cells);
            break;
          case Source::kNothing:
            runs.fill(&nan, cells);
            break;
          case Source::kPatch:
            runs.copy(p.patch, b, z + depth.patch_shift, y + height.patch_shift,
                      x + width.patch_shift, cells);
            break;
          case Source::kBase:
            runs.copy(p.base, m, z + depth.tile_shift, y + height.tile_shift, x + width.tile_shift,
                      cells);
            break;
        }
      }
    }
  };
  write_rows(p.out, element_size(p.dtype), threads, describe);
}

}  // namespace backsight::cpu

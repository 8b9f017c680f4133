#include "core/occlude.h"

#include "core/dtype.h"
#include "cpu/runs.h"

namespace backsight::cpu {

void occlude(const OccludeParams& p, int threads) {
  const auto describe = [&p](Runs& runs, int64_t n, int64_t begin, int64_t end) {
    const OccludeBox box = occlude_box(p, n % p.copies);
    const int64_t b = n / p.copies;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t z = row / p.out.size[1], y = row % p.out.size[1];
      const Interval in = occlude_row(box, z, y);
      runs.copy(p.image, b, z, y, 0, in.lo);
      runs.copy(p.baseline, b, z, y, in.lo, in.hi - in.lo);
      runs.copy(p.image, b, z, y, in.hi, p.out.size[2] - in.hi);
    }
  };
  write_rows(p.out, element_size(p.dtype), threads, describe);
}

}  // namespace backsight::cpu

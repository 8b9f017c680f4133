#include <type_traits>
#include <vector>

#include "core/dtype.h"
#include "core/interval.h"
#include "core/preactivation.h"
#include "core/rows.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace backsight::cpu {
namespace {

constexpr int64_t kChannels = 64;  // of a row at a time, where they lie apart in the output

#define BACKSIGHT_VECTOR_CODE "cpu/interleave_lanes.h"
#include "cpu/each_isa.h"

template <typename T>
void interleave_rows(const DeconvInterleaveParams& p, int64_t begin, int64_t end) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::interleave_rows<T>(p, begin, end);
  if (vector_bytes() >= 32) return vectors32::interleave_rows<T>(p, begin, end);
#endif
  vectors16::interleave_rows<T>(p, begin, end);
}

}  // namespace

void deconv_interleave(const DeconvInterleaveParams& p, int threads) {
  const View& out = p.out;
  const int64_t rows = out.n * out.size[0] * out.size[1];
  const int64_t parts = channels_last(out) ? 1 : (out.c + kChannels - 1) / kChannels;
  const int64_t bytes = rows * out.size[2] * out.c * element_size(p.dtype);
  if (bytes == 0) return;
  with_element(p.dtype, [&](auto element) {
    parallel_chunks(rows * parts, bytes, threads, [&](int64_t begin, int64_t end) {
      interleave_rows<decltype(element)>(p, begin, end);
    });
  });
}

}  // namespace backsight::cpu

#include "core/relu.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "cpu/groups.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace backsight::cpu {
namespace {

#define BACKSIGHT_VECTOR_CODE "cpu/relu_lanes.h"
#include "cpu/each_isa.h"

template <typename T>
void relu_rows(const void* x, void* y, uint8_t* bits, int64_t rows, int64_t length) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::relu_rows<T>(x, y, bits, rows, length);
  if (vector_bytes() >= 32) return vectors32::relu_rows<T>(x, y, bits, rows, length);
#endif
  vectors16::relu_rows<T>(x, y, bits, rows, length);
}

}  // namespace

void relu(const ReluParams& params, int threads) {
  ReluParams p = params;
  if (p.rows * p.length == 0) return;
  if (p.length % kGroup == 0) {  // rows follow each other without padding
    p.length *= p.rows;
    p.rows = 1;
  }
  const int64_t size = element_size(p.dtype), bytes = p.rows * p.length * size;
  with_element(p.dtype, [&](auto element) {
    parallel_chunks(groups_of(p), bytes, threads, [&](int64_t begin, int64_t end) {
      each_stretch(p.length, begin, end,
                   [&](int64_t at, int64_t group, int64_t rows, int64_t length) {
                     relu_rows<decltype(element)>(p.x + at * size, p.y + at * size, p.bits + group,
                                                  rows, length);
                   });
    });
  });
}

}  // namespace backsight::cpu

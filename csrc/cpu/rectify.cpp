#include "core/rectify.h"

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

#define BACKSIGHT_VECTOR_CODE "cpu/rectify_lanes.h"
#include "cpu/each_isa.h"

template <typename T, Rule kRule>
void rectify_rows(const void* grad, void* out, const uint8_t* bits, int64_t rows, int64_t length) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::rectify_rows<T, kRule>(grad, out, bits, rows, length);
  if (vector_bytes() >= 32) return vectors32::rectify_rows<T, kRule>(grad, out, bits, rows, length);
#endif
  vectors16::rectify_rows<T, kRule>(grad, out, bits, rows, length);
}

template <typename T, Rule kRule>
void rectify_lines(const RectifyParams& p, int64_t begin, int64_t end) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::rectify_lines<T, kRule>(p, begin, end);
  if (vector_bytes() >= 32) return vectors32::rectify_lines<T, kRule>(p, begin, end);
#endif
  vectors16::rectify_lines<T, kRule>(p, begin, end);
}

template <typename T, Rule kRule>
void whole(const RectifyParams& p, int64_t elements, int threads) {
  // Rows of `length` elements, or one if no row is padded.
  const int64_t row = p.channels_last ? p.c : p.size[2];
  const int64_t length = row % kGroup == 0 || !uses_bits(kRule) ? elements : row;
  const int64_t groups = elements / length * groups_of(length), size = sizeof(T);
  parallel_chunks(groups, elements * size, threads, [&](int64_t begin, int64_t end) {
    each_stretch(length, begin, end, [&](int64_t at, int64_t group, int64_t rows, int64_t of_row) {
      rectify_rows<T, kRule>(p.grad + at * size, p.out + at * size,
                             uses_bits(kRule) ? p.bits + group : nullptr, rows, of_row);
    });
  });
}

}  // namespace

void rectify(const RectifyParams& p, int threads) {
  const Rectify rectify(p);
  const int64_t lines = rectify.lines(), elements = lines * rectify.line_length();
  if (elements == 0) return;
  const auto go = [&](auto element, auto rule) {
    using T = decltype(element);
    constexpr Rule kRule = decltype(rule)::value;
    if (p.base_index == nullptr) return whole<T, kRule>(p, elements, threads);
    parallel_chunks(lines, elements * element_size(p.dtype), threads,
                    [&](int64_t begin, int64_t end) { rectify_lines<T, kRule>(p, begin, end); });
  };
  with_element(p.dtype,
               [&](auto element) { with_rule(p.rule, [&](auto rule) { go(element, rule); }); });
}

}  // namespace backsight::cpu

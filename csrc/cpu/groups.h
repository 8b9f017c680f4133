// Threads share rows of elements by groups of eight, whose bits are a byte. A row may be cut.
#pragma once

#include "core/bits.h"
#include "core/interval.h"

namespace backsight::cpu {

// Groups [begin, end) of rows of `length` elements, each row beginning with a group of its own, as
// calls of run(element, group, rows, length): where a stretch begins, and its rows, all whole or
// one that is cut.
template <typename Run>
void each_stretch(int64_t length, int64_t begin, int64_t end, const Run& run) {
  const int64_t per_row = groups_of(length);
  while (begin < end) {
    const int64_t row = begin / per_row, group = begin % per_row;
    const int64_t whole = group == 0 ? (end - begin) / per_row : 0;
    const int64_t groups = whole > 0 ? per_row : min64(per_row - group, end - begin);
    const int64_t elements = min64(length - group * kGroup, groups * kGroup);
    run(row * length + group * kGroup, begin, max64(whole, 1), elements);
    begin += max64(whole, 1) * groups;
  }
}

}  // namespace backsight::cpu

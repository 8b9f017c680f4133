// Vectors of elements, and rows laid out for them, as the pools use them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/pool.h"
#include "ops.h"

namespace backsight::cpu {

constexpr int64_t kByteOffsets = 256;  // cells of a window whose offsets are bytes

// An integer as wide as T.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t,
                                 std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;

// A copy that may be short, without a call.
HD void copy_bytes(void* to, const void* from, int64_t bytes) {
  char* const t = static_cast<char*>(to);
  const char* const f = static_cast<const char*>(from);
  if (bytes > 64) {
    memcpy(t, f, static_cast<size_t>(bytes));
  } else if (bytes >= 16) {
    char last[16];
    memcpy(last, f + bytes - 16, 16);
    for (int64_t i = 0; i + 16 <= bytes; i += 16) memcpy(t + i, f + i, 16);
    memcpy(t + bytes - 16, last, 16);
  } else if (bytes >= 8) {
    memcpy(t, f, 8);
    memcpy(t + bytes - 8, f + bytes - 8, 8);
  } else if (bytes >= 4) {
    memcpy(t, f, 4);
    memcpy(t + bytes - 4, f + bytes - 4, 4);
  } else {
    for (int64_t i = 0; i < bytes; ++i) t[i] = f[i];
  }
}

template <typename T>
HD void copy_strided(T* to, const T* from, int64_t count, int64_t stride) {
  if (stride == 1) {
    copy_bytes(to, from, count * int64_t{sizeof(T)});
  } else if (stride == 2) {  // known to the compiler: it loads vectors and picks every second lane
    for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
  }
}

HD int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// How many planes share vectors if each has rows of `lanes`.
inline int64_t planes_together(int64_t lanes, int64_t planes) {
  constexpr int64_t kEnough = 64;
  return lanes >= kEnough / 2 ? 1 : std::min(kEnough / lanes, planes);
}

// Counted from the padded row's start, cell k of window o is o * stride + k * dilation: in the
// row's phase `phase[of[k]]`, the cells with that remainder by the stride, it is number o +
// shift[k].
struct Phases {
  int64_t used = 0, most_shift = 0;
  std::vector<int64_t> of, shift;  // of each cell
  std::vector<int64_t> phase;      // those that hold any cell

  Phases(const Pool& pool, int axis) {
    for (int64_t k = 0; k < pool.kernel[axis]; ++k) {
      const int64_t at = k * pool.dilation[axis], remainder = at % pool.stride[axis];
      const auto known = std::find(phase.begin(), phase.end(), remainder);
      of.push_back(known - phase.begin());
      if (known == phase.end()) phase.push_back(remainder);
      shift.push_back(at / pool.stride[axis]);
    }
    used = static_cast<int64_t>(phase.size());
    most_shift = shift.back();
  }
};

}  // namespace backsight::cpu

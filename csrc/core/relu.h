// relu: the elements of one byte of bits. See ops.h for the definition.
#pragma once

#include "core/bits.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

HD int64_t groups_of(const ReluParams& p) { return p.rows * groups_of(p.length); }

// Whether every group is eight elements at a multiple of 16 bytes.
inline bool whole_groups(const ReluParams& p) {
  const auto aligned = [](const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
  return p.length % kGroup == 0 && aligned(p.x) && aligned(p.y);
}

// Byte i of the bits and the elements it is of.
template <typename T, bool kWhole>
HD void relu_group(const ReluParams& p, int64_t i) {
  using Int = typename Pattern<T>::Int;
  int64_t at = i * kGroup, count = kGroup;
  if (!kWhole) {
    const int64_t groups = groups_of(p.length);
    const int64_t row = divide(i, groups), group = i - row * groups;
    at = row * p.length + group * kGroup;
    count = min64(kGroup, p.length - group * kGroup);
  }
  Int x[kGroup];
  load_group<kWhole>(reinterpret_cast<const Int*>(p.x) + at, count, x);
  unsigned bits = 0;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int k = 0; k < kGroup; ++k) {
    bits |= static_cast<unsigned>(passes<T>(x[k])) << k;
    x[k] = stays<T>(x[k]) ? x[k] : Int{0};
  }
  store_group<kWhole>(reinterpret_cast<Int*>(p.y) + at, count, x);
  p.bits[i] = static_cast<uint8_t>(bits);
}

}  // namespace backsight

// Signs of elements, read off their bit patterns, and rows of bits.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/hd.h"
#include "core/rows.h"

namespace backsight {

// The integers that hold an element's bit pattern. As integers, patterns with the sign bit go from
// -0 (the least) by way of minus infinity to NaN (-1), and the others from +0 up to NaN.
template <typename T>
struct Pattern;
template <>
struct Pattern<double> {
  using Int = int64_t;
  static constexpr Int kLeast = INT64_MIN, kMinusInfinity = kLeast + 0x7ff0000000000000;
  static constexpr Int kNaN = 0x7ff8000000000000;
};
template <>
struct Pattern<float> {
  using Int = int32_t;
  static constexpr Int kLeast = INT32_MIN, kMinusInfinity = kLeast + 0x7f800000;
  static constexpr Int kNaN = 0x7fc00000;
};
template <>
struct Pattern<Half> {
  using Int = int16_t;
  static constexpr Int kLeast = INT16_MIN, kMinusInfinity = kLeast + 0x7c00, kNaN = 0x7e00;
};
template <>
struct Pattern<BFloat16> {
  using Int = int16_t;
  static constexpr Int kLeast = INT16_MIN, kMinusInfinity = kLeast + 0x7f80, kNaN = 0x7fc0;
};

// Whether a gradient passes x: x > 0, or NaN.
template <typename T>
HD bool passes(typename Pattern<T>::Int x) {
  return x > Pattern<T>::kMinusInfinity && x != 0;
}

// Whether max(x, 0) leaves x as it is: not x < 0.
template <typename T>
HD bool stays(typename Pattern<T>::Int x) {
  return x > Pattern<T>::kMinusInfinity || x == Pattern<T>::kLeast;
}

constexpr int64_t kGroup = 8;  // elements whose bits share a byte

HD int64_t groups_of(int64_t length) { return (length + kGroup - 1) / kGroup; }

// Bits [lo, hi) of a byte, cut to it.
HD unsigned bit_range(int64_t lo, int64_t hi) {
  lo = lo < 0 ? 0 : lo;
  hi = hi > kGroup ? kGroup : hi;
  return lo < hi ? (0xffu >> (kGroup - (hi - lo))) << lo : 0;
}

// `count` bits of a row, 1 to 8, from bit `at` on, in the low bits; what lies above them is
// undefined. Reads no byte in which none of them lies.
HD unsigned read_bits(const uint8_t* row, int64_t at, int64_t count) {
  const int64_t byte = at / kGroup, shift = at % kGroup;
  unsigned bits = row[byte];
  if (shift + count > kGroup) bits |= unsigned{row[byte + 1]} << kGroup;
  return bits >> shift;
}

template <typename Int>
constexpr int kBlocks = kGroup * sizeof(Int) / sizeof(Block16);

// A group of `count` patterns, in one thread's registers. kWhole: always 8, aligned to 16 bytes.
template <bool kWhole, typename Int>
HD void load_group(const Int* from, int64_t count, Int (&to)[kGroup]) {
  if constexpr (kWhole) {
    for (int k = 0; k < kBlocks<Int>; ++k) {
      const Block16 block = reinterpret_cast<const Block16*>(from)[k];
      memcpy(to + k * kGroup / kBlocks<Int>, &block, sizeof(block));
    }
  } else {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = 0; k < kGroup; ++k) to[k] = k < count ? from[k] : Int{0};
  }
}

template <bool kWhole, typename Int>
HD void store_group(Int* to, int64_t count, const Int (&from)[kGroup]) {
  if constexpr (kWhole) {
    for (int k = 0; k < kBlocks<Int>; ++k) {
      Block16 block;
      memcpy(&block, from + k * kGroup / kBlocks<Int>, sizeof(block));
      reinterpret_cast<Block16*>(to)[k] = block;
    }
  } else {
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = 0; k < kGroup; ++k)
      if (k < count) to[k] = from[k];
  }
}

}  // namespace backsight

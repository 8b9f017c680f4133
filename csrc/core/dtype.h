// Element types, and the bit patterns that copying kernels fill with.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/hd.h"
#include "ops.h"

namespace backsight {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// All bits set, or none.
HD uint32_t mask(bool condition) { return 0u - uint32_t{condition}; }

// Conversions to and from float round to nearest, ties to even, and keep NaN and infinities. They
// have no branches, so that loops over them become vectors.
HD float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

HD float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // 2^112 moves the exponent bias from 15 to 127, and makes subnormals normal, exactly.
  const float value = bit_cast<float>(magnitude << 13) * bit_cast<float>(uint32_t{239} << 23);
  const uint32_t special = 0x7f800000u & mask(magnitude >= 0x7c00u);
  return bit_cast<float>(sign | special | bit_cast<uint32_t>(value));
}

HD BFloat16 to_bfloat16(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

HD Half to_half(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Adding 0.5 aligns and rounds the mantissa of what becomes subnormal.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t is_small = mask(magnitude < 0x38800000u);
  const uint32_t is_large = mask(magnitude >= 0x47800000u);  // 65536; [65520, 65536) rounds up
  const uint32_t bits = (((subnormal & is_small) | (normal & ~is_small)) & ~is_large) |
                        (0x7c00u & is_large) | (0x0200u & mask(magnitude > 0x7f800000u));
  return {static_cast<uint16_t>(sign | bits)};
}

// What an element is computed in: double for double, float for all others.
template <typename T>
HD float widen(T x) {
  return to_float(x);
}
HD float widen(float x) { return x; }
HD double widen(double x) { return x; }

template <typename T>
using Widened = decltype(widen(T{}));

// The other way: rounds to nearest.
HD void store(double x, double* y) { *y = x; }
HD void store(float x, float* y) { *y = x; }
HD void store(float x, Half* y) { *y = to_half(x); }
HD void store(float x, BFloat16* y) { *y = to_bfloat16(x); }

inline int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
  }
  throw std::invalid_argument("expected a dtype code 0..3, got " +
                              std::to_string(static_cast<int>(dtype)));
}

// Calls run(T{}) with the element type of a dtype.
template <typename Run>
auto with_element(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat64: return run(double{});
    case DType::kFloat32: return run(float{});
    case DType::kFloat16: return run(Half{});
    case DType::kBFloat16: break;
  }
  return run(BFloat16{});
}

// The bits of `value` rounded to dtype, in the low bytes.
inline uint64_t bits_of(double value, DType dtype) {
  const float single = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat64: return bit_cast<uint64_t>(value);
    case DType::kFloat32: return bit_cast<uint32_t>(single);
    case DType::kFloat16: return to_half(single).bits;
    case DType::kBFloat16: return to_bfloat16(single).bits;
  }
  return 0;
}

}  // namespace backsight

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

// Conversions to and from float round to nearest, ties to even, and keep NaN and infinities.
HD float to_float(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

HD float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  // 2^112 moves the exponent bias from 15 to 127, and makes subnormals normal, exactly.
  const float value = bit_cast<float>(magnitude << 13) * bit_cast<float>(uint32_t{239} << 23);
  return bit_cast<float>(sign | bit_cast<uint32_t>(value));
}

HD BFloat16 to_bfloat16(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

HD Half to_half(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t bits;
  if (magnitude > 0x7f800000u) {
    bits = 0x7e00;
  } else if (magnitude >= 0x47800000u) {  // 65536 and more; [65520, 65536) rounds up below
    bits = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns and rounds the mantissa
    bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

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

// Heat maps: sums and means of box scores at every pixel, in exact integer arithmetic.
//
// Boxes are cut into cells: along each axis the distinct box edges are sorted, and two neighbouring
// edges bound one segment, within which nothing changes. The difference array of a box over that
// grid of cells has at most eight entries, so all boxes are summed by scattering and prefix sums.
//
// A score is m * 2^e with an integer m. Let 2^unit be the lowest bit that a finite score of one
// output can have. Then every score is an integer in that unit; it is cut into `levels` digits of
// `width` bits with the sign of the score, and each level is summed in 64 bits. `width` leaves room
// for the largest number of boxes over one pixel, so a level never overflows, and intermediate
// differences may wrap. The sums are exact, hence they do not depend on any order, and only the
// last step, to the output's dtype, rounds. Scores of one output that span less than about 2^35
// (float32) need one level.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/hd.h"
#include "ops.h"

namespace backsight {
namespace heatmap {

// Float is the type scores are computed in.
template <typename Float>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 150, kSpecial = 255;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1075, kSpecial = 2047;
};

// Rounds to nearest; the 16-bit types by way of float32, as torch converts.
HD void narrow(double x, double* y) { *y = x; }
HD void narrow(double x, float* y) { *y = static_cast<float>(x); }
HD void narrow(double x, Half* y) { *y = to_half(static_cast<float>(x)); }
HD void narrow(double x, BFloat16* y) { *y = to_bfloat16(static_cast<float>(x)); }

// |x| as an integer that orders like |x|; infinities and NaN come last.
template <typename Float>
HD typename Format<Float>::Bits magnitude(Float x) {
  using Bits = typename Format<Float>::Bits;
  return bit_cast<Bits>(x) & (~Bits{0} >> 1);
}

template <typename Float>
HD bool is_finite(Float x) {
  return (magnitude(x) >> Format<Float>::kMantissa) != Format<Float>::kSpecial;
}

// The biased exponent that a subnormal number shares with the smallest normal one.
template <typename Float>
HD int exponent(typename Format<Float>::Bits magnitude_bits) {
  const int field = static_cast<int>(magnitude_bits >> Format<Float>::kMantissa);
  return field > 0 ? field : 1;
}

// The integer m of |x| = m * 2^(exponent - kBias).
template <typename Float>
HD uint64_t mantissa(typename Format<Float>::Bits magnitude_bits) {
  using Bits = typename Format<Float>::Bits;
  const Bits hidden = Bits{1} << Format<Float>::kMantissa;
  return (magnitude_bits & (hidden - 1)) | (magnitude_bits >= hidden ? hidden : 0);
}

// How the scores of one output are cut into digits.
struct Scale {
  int lowest = 1;    // biased exponent of the smallest nonzero |score|
  int levels = 1;    // digits needed
  bool bad = false;  // some score is not finite
};

// Bits that a digit may have when at most `cover` boxes lie over one pixel.
HD int digit_width(int64_t cover) {
  int bits = 0;
  for (; cover > 0; cover >>= 1) ++bits;
  return 63 - bits;
}

// `smallest` and `largest` are the magnitudes of the finite nonzero scores (largest = 0: none).
template <typename Float>
HD Scale make_scale(typename Format<Float>::Bits smallest, typename Format<Float>::Bits largest,
                    bool bad, int width) {
  Scale scale;
  scale.bad = bad;
  if (largest == 0) return scale;
  scale.lowest = exponent<Float>(smallest);
  const int bits = exponent<Float>(largest) - scale.lowest + Format<Float>::kMantissa + 1;
  scale.levels = (bits + width - 1) / width;
  return scale;
}

// The only digit of a finite score where one level is enough.
template <typename Float>
HD uint64_t digit(Float x, int lowest) {
  const auto m = magnitude(x);
  const int shift = exponent<Float>(m) - lowest;  // below 0 for x = 0 only
  const uint64_t value = mantissa<Float>(m) << (shift > 0 ? shift : 0);
  return std::signbit(x) ? 0 - value : value;
}

// Digit `level` of a score, two's complement; 0 for one that is not finite.
template <typename Float>
HD uint64_t digit(Float x, int lowest, int width, int level) {
  if (!is_finite(x)) return 0;
  const auto m = magnitude(x);
  const int64_t shift = exponent<Float>(m) - lowest - int64_t{width} * level;
  uint64_t value = mantissa<Float>(m);
  if (shift >= 0) {
    value = shift < 64 ? value << shift : 0;
  } else {
    value = shift > -64 ? value >> -shift : 0;
  }
  value &= (uint64_t{1} << width) - 1;
  return std::signbit(x) ? 0 - value : value;
}

// The same as a cast, rounding to nearest, in operations that vectorise without AVX-512.
HD double to_double(uint64_t x) {
#ifdef __CUDA_ARCH__
  return static_cast<double>(static_cast<int64_t>(x));
#else
  const double high = bit_cast<double>((x >> 32) ^ 0x4530000080000000u);
  const double low = bit_cast<double>((x & 0xffffffffu) | 0x4330000000000000u);
  return (high - (0x1p84 + 0x1p63 + 0x1p52)) + low;
#endif
}

// 2^e, for e in [-1022, 1023].
HD double power_of_two(int e) { return bit_cast<double>(uint64_t(e + 1023) << 52); }

// The sum of one level, as the result in the dtype of the scores: one rounding each for the
// integer, the quotient and the dtype. Float is float: 2^unit is a normal double.
HD double finish(uint64_t sum, double count, double unit) { return to_double(sum) / count * unit; }

// The sum of several levels: (high + low) * 2^(width * level), taken from the top level down.
struct Wide {
  double high = 0, low = 0;
  int level = 0;
};

HD void two_sum(double a, double b, double* sum, double* error) {
  const double s = a + b;
  const double from_b = s - a;
  *error = (a - (s - from_b)) + (b - from_b);
  *sum = s;
}

HD void add_level(Wide* wide, uint64_t sum, int width, int level) {
  // A hundred bits further down nothing can be seen; stopping keeps the numbers from overflowing.
  if (fabs(wide->high) > power_of_two(200)) return;
  const double step = power_of_two(width);
  const int64_t value = static_cast<int64_t>(sum);
  const double top = static_cast<double>(value >> 32) * 4294967296.0;  // both parts are exact
  const double rest = static_cast<double>(value & 0xffffffff);
  double high, low, error;
  two_sum(wide->high * step, top, &high, &low);
  two_sum(high, rest, &high, &error);
  low += error + wide->low * step;
  two_sum(high, low, &wide->high, &wide->low);
  wide->level = level;
}

// The rounded value of `wide` over `count`, in units of 2^unit.
HD double finish(const Wide& wide, double count, int unit, int width) {
  double quotient = wide.high / count;
  const double remainder = fma(-quotient, count, wide.high) + wide.low;
  quotient += remainder / count;
  const int e = unit + width * wide.level;
  if (e < -1022 || e > 1023) return ldexp(quotient, e);
  return quotient * power_of_two(e);
}

// The exponent of the unit of a scale.
template <typename Float>
HD int unit_of(const Scale& scale) {
  return scale.lowest - Format<Float>::kBias;
}

// Box n clipped to the map; false if nothing is left of it. The axes that a map of kDims does not
// have are in front, of size 1.
template <int kDims>
HD bool clip_box(const HeatmapParams& p, int64_t n, int64_t* lo, int64_t* hi) {
  bool full = true;
  const int64_t* box = p.boxes + n * 2 * kDims;
  for (int axis = 0; axis < kAxes; ++axis) {
    const int column = axis - (kAxes - kDims);
    lo[axis] = 0;
    hi[axis] = 1;
    if (column < 0) continue;
    const int64_t size = p.size[axis];
    lo[axis] = box[column] < 0 ? 0 : box[column];
    hi[axis] = box[kDims + column] > size ? size : box[kDims + column];
    full = full && lo[axis] < hi[axis];
  }
  return full;
}

HD bool clip_box(const HeatmapParams& p, int64_t n, int64_t* lo, int64_t* hi) {
  if (p.dims == 1) return clip_box<1>(p, n, lo, hi);
  if (p.dims == 2) return clip_box<2>(p, n, lo, hi);
  return clip_box<3>(p, n, lo, hi);
}

// The corners of the difference array of a box over a grid of `cells` cells, where the box covers
// segments [lo, hi): the entry of corner c (bit a: the far end along axis a) has this sign and
// index, or index -1 if it falls off the grid.
HD bool corner_is_negative(int corner) {
  return ((corner ^ (corner >> 1) ^ (corner >> 2)) & 1) != 0;
}

HD int64_t corner_index(int corner, const int64_t* lo, const int64_t* hi, const int64_t* cells) {
  int64_t index = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const int64_t at = ((corner >> axis) & 1) != 0 ? hi[axis] : lo[axis];
    if (at == cells[axis]) return -1;
    index = index * cells[axis] + at;
  }
  return index;
}

}  // namespace heatmap
}  // namespace backsight

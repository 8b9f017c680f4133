// preactivation: one element, and the rows of one map. See ops.h for the definition.
#pragma once

#include "core/dtype.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

// a * b + c, both rounded: left to itself nvcc contracts them.
HD float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

HD double multiply_add(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(__dmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

// max(x, 0); NaN is not below 0. Without a branch even where conversions follow.
HD float rectified(float x) { return bit_cast<float>(bit_cast<uint32_t>(x) & ~mask(x < 0)); }
HD double rectified(double x) { return x < 0 ? 0 : x; }

template <typename T>
HD T preactivated(T x, Widened<T> scale, Widened<T> shift) {
  T result;
  store(rectified(multiply_add(widen(x), scale, shift)), &result);
  return result;
}

// One map, and the channels of the output that are its own.
template <typename T>
struct PreactivationSlice {
  View in, out;
  const Widened<T>*scale, *shift;  // of the first of these channels

  PreactivationSlice(const PreactivationParams& p, const View& map, int64_t first_channel)
      : in(map),
        out(p.out),
        scale(reinterpret_cast<const Widened<T>*>(p.scale) + first_channel),
        shift(reinterpret_cast<const Widened<T>*>(p.shift) + first_channel) {
    out.c = in.c;
    out.data += first_channel * out.stride_c * int64_t{sizeof(T)};
  }
};

// The part of row `r` that falls to one of `threads` threads: with channels last a row is a cell,
// else a line of cells in one channel, and rows are counted in the order in which they lie in the
// output. kVector elements are read and written at a time: 1, or 16 bytes' worth if rows are whole
// numbers of aligned 16-byte blocks, of the map as well as of the output.
template <typename T, bool kChannelsLast, int kVector>
HD void write_row(const PreactivationSlice<T>& slice, int64_t r, int64_t thread, int64_t threads) {
  const View &in = slice.in, &out = slice.out;
  const int64_t inner = kChannelsLast ? out.size[2] : out.size[1];
  const int64_t rest = divide(r, inner);
  const int64_t outer = kChannelsLast ? out.size[1] : out.size[0];
  const int64_t plane = divide(rest, outer);
  const int64_t planes = kChannelsLast ? out.size[0] : out.c;
  const int64_t n = divide(plane, planes);
  int64_t from = n * in.stride_n, to = n * out.stride_n, c = 0;
  if (kChannelsLast) {
    const int64_t z = plane - n * planes, y = rest - plane * outer, x = r - rest * inner;
    from += z * in.stride[0] + y * in.stride[1] + x * in.stride[2];
    to += z * out.stride[0] + y * out.stride[1] + x * out.stride[2];
  } else {
    c = plane - n * planes;
    const int64_t z = rest - plane * outer, y = r - rest * inner;
    from += c * in.stride_c + z * in.stride[0] + y * in.stride[1];
    to += c * out.stride_c + z * out.stride[0] + y * out.stride[1];
  }
  const T* const source = reinterpret_cast<const T*>(in.data) + from;
  T* const target = reinterpret_cast<T*>(out.data) + to;
  const int64_t length = kChannelsLast ? out.c : out.size[2];
  const int64_t stride = kChannelsLast ? in.stride_c : in.stride[2];  // 1 if kVector > 1
  for (int64_t i = thread * kVector; i < length; i += threads * kVector) {
    alignas(16) T block[kVector];
    if (kVector > 1) {
      *reinterpret_cast<Block16*>(block) = *reinterpret_cast<const Block16*>(source + i);
    } else {
      block[0] = source[i * stride];
    }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = 0; k < kVector; ++k) {
      const int64_t channel = kChannelsLast ? i + k : c;
      block[k] = preactivated(block[k], slice.scale[channel], slice.shift[channel]);
    }
    if (kVector > 1) {
      *reinterpret_cast<Block16*>(target + i) = *reinterpret_cast<const Block16*>(block);
    } else {
      target[i] = block[0];
    }
  }
}

// Whether every row of an array, as write_row counts them, begins at an aligned 16-byte block.
inline bool rows_are_aligned(const View& v, bool channels_last, int64_t element) {
  const int64_t inner = channels_last ? v.stride_c : v.stride[2];
  const int64_t inner_size = channels_last ? v.c : v.size[2];
  bool aligned = inner == 1 && inner_size * element % 16 == 0 &&
                 reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.stride_n * element % 16 == 0;
  for (int axis = 0; axis < (channels_last ? 3 : 2); ++axis)
    aligned = aligned && v.stride[axis] * element % 16 == 0;
  return aligned && (channels_last || v.stride_c * element % 16 == 0);
}

}  // namespace backsight

// What the copying ops have in common: an output made row by row (cells along the last axis), each
// row put together from pieces of other arrays.
//
// An op is a class `Rows` with
//   const View& out(); int64_t element_size();
//   Window window(int64_t n)                                  what is constant in an output's entry
//   Row row(const Window&, int64_t n, int64_t c, int64_t z, int64_t y)   and in one of its rows
//   Piece piece(const Window&, const Row&, int64_t x)         where cell x comes from
#pragma once

#include "core/hd.h"
#include "core/interval.h"
#include "ops.h"

namespace backsight {

// Cells [x, end) of a row, x being the cell asked about, that share one source.
struct Piece {
  int64_t end;
  const char* from;          // cell x, channel c; null: a constant
  uint64_t value;            // the constant's bits
  int64_t stride, stride_c;  // elements from cell to cell, from channel to channel
  const char* limit;         // one past the source's last byte
};

// A source of pieces.
struct Source {
  View view;
  int64_t element_size;
  const char* limit;

  Source(const View& v, int64_t size) : view(v), element_size(size), limit(v.data) {
    if (v.n * v.c * v.size[0] * v.size[1] * v.size[2] == 0) return;  // data may be null
    int64_t last = (v.n - 1) * v.stride_n + (v.c - 1) * v.stride_c;
    for (int axis = 0; axis < kAxes; ++axis) last += (v.size[axis] - 1) * v.stride[axis];
    limit += (last + 1) * element_size;
  }

  // `offset` elements from the start is cell x; the piece ends before cell `end`.
  HD Piece piece(int64_t offset, int64_t end) const {
    return {end,  view.data + offset * element_size, 0, view.stride[kAxes - 1], view.stride_c,
            limit};
  }
};

HD Piece constant(uint64_t value, int64_t end) { return {end, nullptr, value, 0, 0, nullptr}; }

// Whether an output's channels lie next to each other in memory.
HD bool channels_last(const View& out) { return out.stride_c == 1 && out.c > 1; }

struct alignas(16) Block16 {
  uint64_t words[2];
};

// a / b for a >= 0 and b > 0; 32-bit division is much cheaper.
HD int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The part of row `r` (rows counted in the order in which they lie in memory) that falls to one of
// `threads` threads. T has the elements' size; kVector is how many a thread writes at a time: 1, or
// 16 bytes' worth if every row of the output is a whole number of aligned 16-byte blocks.
template <typename T, bool kChannelsLast, int kVector, typename Rows>
HD void write_row(const Rows& rows, int64_t r, int64_t thread, int64_t threads) {
  const View& out = rows.out();
  const int64_t planes = kChannelsLast ? 1 : out.c;
  const int64_t slice = divide(r, out.size[1]), y = r - slice * out.size[1];
  const int64_t plane = divide(slice, out.size[0]), z = slice - plane * out.size[0];
  const int64_t n = divide(plane, planes), c = plane - n * planes;
  const int64_t channels = kChannelsLast ? out.c : 1;
  const int64_t length = out.size[2] * channels;
  T* const to = reinterpret_cast<T*>(out.data) + r * length;

  const auto window = rows.window(n);
  const auto row = rows.row(window, n, c, z, y);
  for (int64_t i = thread * kVector; i < length; i += threads * kVector) {
    alignas(16) T block[kVector];
    int64_t x = kChannelsLast ? divide(i, channels) : i;  // of the element
    int64_t channel = kChannelsLast ? i - x * channels : 0;
    Piece piece = rows.piece(window, row, x);
    const T* from = reinterpret_cast<const T*>(piece.from);  // cell x, channel 0
    if (kVector > 1 && from && (piece.end - x) * channels - channel >= kVector) {
      const T* first = from + channel * piece.stride_c;
      const bool dense = kChannelsLast ? piece.stride_c == 1 && (piece.stride == channels ||
                                                                 channel + kVector <= channels)
                                       : piece.stride == 1;
      if (dense && reinterpret_cast<uintptr_t>(first) % 16 == 0) {
        *reinterpret_cast<Block16*>(to + i) = *reinterpret_cast<const Block16*>(first);
        continue;
      }
    }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = 0; k < kVector; ++k) {
      if (x == piece.end) {
        piece = rows.piece(window, row, x);
        from = reinterpret_cast<const T*>(piece.from);
      }
      block[k] = from ? from[channel * piece.stride_c] : static_cast<T>(piece.value);
      if (!kChannelsLast || ++channel == channels) {
        channel = 0;
        ++x;
        from += from ? piece.stride : 0;
      }
    }
    if (kVector > 1) {
      *reinterpret_cast<Block16*>(to + i) = *reinterpret_cast<const Block16*>(block);
    } else {
      to[i] = block[0];
    }
  }
}

}  // namespace backsight

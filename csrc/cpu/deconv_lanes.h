// The inner loops of subpixel_deconv. See cpu/each_isa.h.

#include "cpu/wide_lanes.h"

// A vector that repeats the kPattern values at `from`; or, with 0, the values there.
template <typename W, int kPattern>
HD Vector<W> load_pattern(const W* from) {
  constexpr int kSize = kPattern * sizeof(W);
  if constexpr (kPattern == 1) {
    return *from - Vector<W>{};  // -0 stays -0
  } else if constexpr (kSize == 8) {
    int64_t bits;
    memcpy(&bits, from, sizeof(bits));
    return bit_cast<Vector<W>>(bits + Vector<int64_t>{});
#if BACKSIGHT_HAS_TARGETS
  } else if constexpr (kSize == 16 && kBytes == 64) {
    const __m128i bits = _mm_loadu_si128((const __m128i*)from);
    return (Vector<W>)_mm512_maskz_broadcast_i32x4(-1, bits);
  } else if constexpr (kSize == 16 && kBytes == 32) {
    return (Vector<W>)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)from));
#endif
  } else {
    return load(from);
  }
}

// kQ vectors of columns of kOut channels of one output row, from column o of the strip on.
template <typename W, int kOut, int kQ, int kPattern>
HD void deconv_columns(const Strip<W>& s, int64_t o) {
  constexpr int64_t kLanes = kLanesOf<W>;
  Vector<W> sum[kOut][kQ] = {}, bits[kQ];
  int64_t at[kQ];
#pragma GCC unroll 8
  for (int q = 0; q < kQ; ++q) {
    at[q] = kPattern > 0 ? 0 : (s.phase + o + q * kLanes) % s.stride;
    bits[q] = load_pattern<W, kPattern>(s.mask + at[q]);
  }
  const int64_t last = s.taps - 1;
  const auto add = [&](const W* u, const W* w, bool partial) __attribute__((always_inline)) {
    Vector<W> x[kQ];
#pragma GCC unroll 8
    for (int q = 0; q < kQ; ++q) {
      x[q] = load(u + q * kLanes);
      if (partial) x[q] = masked<W>(x[q], bits[q]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kOut; ++c) {
      const W* const taps = w + c * s.filter_out;
#pragma GCC unroll 8
      for (int q = 0; q < kQ; ++q) sum[c][q] += x[q] * load_pattern<W, kPattern>(taps + at[q]);
    }
  };
  for (int64_t i = 0; i < s.channels; ++i) {
    const W* const rows = s.rows + i * s.rows_channel + o;
    const W* const filter = s.filter + i * s.filter_channel;
    for (int64_t j = 0; j < s.count; ++j) {
      const W* u = rows + s.row_at[j] + last * s.stride;
      const W* w = filter + s.filter_at[j];
      for (int64_t m = 0; m < last; ++m) {
        add(u, w, false);
        u -= s.stride;
        w += s.pattern;
      }
      add(u, w, true);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kOut; ++c) {
    W* const to = s.out + c * s.out_channel;
#pragma GCC unroll 8
    for (int q = 0; q < kQ; ++q) {
      Vector<W> y = sum[c][q];
      if (s.bias) y += s.bias[c];
      if (s.relu) y = rectified_lanes<W>(y);
      const int64_t first = o + q * kLanes;
      if (first + kLanes <= s.room) {
        store(to + first, y);
      } else if (first < s.room) {
        memcpy(to + first, &y, static_cast<size_t>(s.room - first) * sizeof(W));
      }
    }
  }
}

template <typename W, int kOut, int kPattern>
void deconv_strip(const Strip<W>& s, int64_t columns) {
  constexpr int64_t kLanes = kLanesOf<W>;
  constexpr int kQ = kOut == 1 ? 8 : kOut <= 3 ? 4 : 3;
  int64_t o = 0;
  for (; o + kQ * kLanes <= columns; o += kQ * kLanes) deconv_columns<W, kOut, kQ, kPattern>(s, o);
  if (kOut == 1)
    for (; o + 3 * kLanes < columns; o += 4 * kLanes) deconv_columns<W, kOut, 4, kPattern>(s, o);
  for (; o + kLanes < columns; o += 2 * kLanes) deconv_columns<W, kOut, 2, kPattern>(s, o);
  for (; o < columns; o += kLanes) deconv_columns<W, kOut, 1, kPattern>(s, o);
}

template <typename W, int kPattern>
void deconv_strip(const Strip<W>& s, int64_t outs, int64_t columns) {
  switch (outs) {
    case 1: return deconv_strip<W, 1, kPattern>(s, columns);
    case 2: return deconv_strip<W, 2, kPattern>(s, columns);
    case 3: return deconv_strip<W, 3, kPattern>(s, columns);
    default: return deconv_strip<W, 4, kPattern>(s, columns);
  }
}

template <typename W>
void deconv_strip(const Strip<W>& s, int64_t outs, int64_t columns) {
  if (s.repeats) {
    switch (s.stride) {
      case 1: return deconv_strip<W, 1>(s, outs, columns);
      case 2: return deconv_strip<W, 2>(s, outs, columns);
      default:
        if constexpr (sizeof(W) == 4) return deconv_strip<W, 4>(s, outs, columns);
    }
  }
  deconv_strip<W, 0>(s, outs, columns);
}

// Each of `cells` values `stride` times, but the first `skipped` of all; `length` values in whole
// vectors. kLanes values may be read and written beyond.
template <typename W>
HD void repeat_cells(const W* cells, W* to, int64_t length, int64_t stride, int64_t skipped) {
  constexpr int64_t kLanes = kLanesOf<W>;
  if (stride > 1 && kLanes % stride == 0 && kBytes > 16) {
    using Index = Vector<std::conditional_t<sizeof(W) == 8, int64_t, int32_t>>;
    Index index{};
    for (int64_t i = 0; i < kLanes; ++i) index[i] = (skipped + i) / stride;
    for (int64_t i = 0; i < length; i += kLanes, cells += kLanes / stride)
      store(to + i, __builtin_shuffle(load(cells), index));
    return;
  }
  int64_t i = 0;
  for (int64_t left = stride - skipped; i < length; left = stride, ++cells) {
    const W value = *cells;
    for (const int64_t end = min64(i + left, length); i < end; ++i) to[i] = value;
  }
}

// The rows of x that some output rows meet.
struct MetRows {
  Taps z;
  int64_t lo, held;                        // along the height: the first, and how many
  std::vector<int64_t> row_at, filter_at;  // of all output rows, see Strip
  std::vector<int64_t> begin;              // of each output row in these

  // `length` values are held of each row of x, and `taps` values of each row of the filter.
  void find(const SubpixelDeconvParams& p, int64_t oz, int64_t top, int64_t bottom, int64_t length,
            int64_t taps) {
    const Pool& pool = p.pool;
    z = taps_at(p, 0, oz);
    int64_t hi = -1;
    lo = p.x.size[1];
    for (int64_t oy = top; oy < bottom; ++oy) {
      const Taps y = taps_at(p, 1, oy);
      if (y.count == 0) continue;
      lo = min64(lo, y.input - (y.count - 1) * pool.window_step[1]);
      hi = max64(hi, y.input);
    }
    held = max64(hi - lo + 1, 0);
    row_at.clear();
    filter_at.clear();
    begin.assign(1, 0);
    for (int64_t oy = top; oy < bottom; ++oy) {
      const Taps y = taps_at(p, 1, oy);
      for (int64_t jz = 0; jz < z.count; ++jz) {
        const int64_t kz = z.first + jz * pool.cell_step[0];
        for (int64_t jy = 0; jy < y.count; ++jy) {
          const int64_t ky = y.first + jy * pool.cell_step[1];
          const int64_t row = y.input - jy * pool.window_step[1] - lo;
          row_at.push_back((jz * held + row) * length);
          filter_at.push_back((kz * pool.kernel[1] + ky) * taps);
        }
      }
      begin.push_back(static_cast<int64_t>(row_at.size()));
    }
  }
};

// Values of kMostOut channels to where their channels lie side by side.
template <typename T>
HD void store_pixels(const Widened<T>* from, int64_t stride, T* to, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T pixel[kMostOut];
#pragma GCC unroll 4
    for (int64_t k = 0; k < kMostOut; ++k) backsight::store(from[k * stride + i], &pixel[k]);
    memcpy(to + i * step, pixel, sizeof(pixel));
  }
}

// Tiles [begin, end) of the output, those of all groups one after the other.
template <typename T>
void deconv_tiles(const SubpixelDeconvParams& p, const DeconvTiles<Widened<T>>& tiles,
                  int64_t begin, int64_t end) {
  using W = Widened<T>;
  const View &x = p.x, &out = p.out;
  const Pool& pool = p.pool;
  const int64_t stride = pool.stride[2], taps = tiles.taps;
  const int64_t slices = ceil_divide(pool.kernel[0], pool.cell_step[0]);
  std::vector<W> rows(static_cast<size_t>(tiles.into * slices * tiles.most_rows * tiles.length));
  std::vector<W> cells(static_cast<size_t>(tiles.length + kBytes));
  std::vector<W> result(static_cast<size_t>(kMostOut * (tiles.width + kBytes)));
  W bias[kMostOut];
  MetRows met;
  int64_t met_place = -1;
  const bool direct = sizeof(T) == sizeof(W) && out.stride[2] == 1;

  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % p.groups, place = task / p.groups;
    int64_t rest = place;
    const int64_t first = rest % tiles.across * tiles.width;
    rest /= tiles.across;
    const int64_t top = rest % tiles.down * tiles.height;
    rest /= tiles.down;
    const int64_t oz = rest % out.size[0], n = rest / out.size[0];
    const int64_t columns = min64(tiles.width, out.size[2] - first);
    const int64_t bottom = min64(top + tiles.height, out.size[1]);
    if (place != met_place) met.find(p, oz, top, bottom, tiles.length, taps * tiles.pattern);
    met_place = place;
    const int64_t slice = met.held * tiles.length, channel = met.z.count * slice;

    // Columns of x, each `stride` times: column o of the tile and tap m meet value
    // o + (taps - 1 - m) * stride.
    const int64_t column = first + pool.padding[2];
    const int64_t first_cell = column / stride - (taps - 1), skipped = column % stride;
    const int64_t length = columns + (taps - 1) * stride;
    const int64_t count = (skipped + length + stride - 1) / stride;
    const int64_t before = min64(max64(-first_cell, 0), count);
    const int64_t after = max64(min64(x.size[2] - first_cell, count), before);
    for (int64_t i = 0; i < tiles.into; ++i) {
      for (int64_t jz = 0; jz < met.z.count; ++jz) {
        for (int64_t row = 0; row < met.held; ++row) {
          const T* const from = reinterpret_cast<const T*>(x.data) + n * x.stride_n +
                                (group * tiles.into + i) * x.stride_c +
                                (met.z.input - jz * pool.window_step[0]) * x.stride[0] +
                                (met.lo + row) * x.stride[1] + first_cell * x.stride[2];
          W* const to = rows.data() + i * channel + jz * slice + row * tiles.length;
          W* const line = stride == 1 ? to : cells.data();
          for (int64_t c = 0; c < before; ++c) line[c] = 0;
          if (x.stride[2] == 1) {
            for (int64_t c = before; c < after; ++c) line[c] = widen(from[c]);
          } else {
            for (int64_t c = before; c < after; ++c) line[c] = widen(from[c * x.stride[2]]);
          }
          for (int64_t c = after; c < count; ++c) line[c] = 0;
          if (stride > 1) repeat_cells(line, to, length, stride, skipped);
        }
      }
    }

    Strip<W> strip;
    strip.rows = rows.data();
    strip.rows_channel = channel;
    strip.channels = tiles.into;
    strip.filter_channel = tiles.filter;
    strip.filter_out = tiles.into * tiles.filter;
    strip.pattern = tiles.pattern;
    strip.mask = tiles.mask.data();
    strip.repeats = tiles.repeats;
    strip.taps = taps;
    strip.stride = stride;
    strip.phase = first % stride;
    strip.out_channel = direct ? out.stride_c : tiles.width + kBytes;
    strip.room = direct ? columns : strip.out_channel;
    strip.relu = p.relu;
    strip.bias = p.bias ? bias : nullptr;
    for (int64_t c = 0; c < tiles.onto; c += kMostOut) {
      const int64_t outs = min64(kMostOut, tiles.onto - c), o = group * tiles.onto + c;
      if (p.bias)
        for (int64_t k = 0; k < outs; ++k)
          bias[k] = widen(reinterpret_cast<const T*>(p.bias)[o + k]);
      strip.filter = tiles.weights.data() + o * strip.filter_out;
      for (int64_t oy = top; oy < bottom; ++oy) {
        const int64_t at = met.begin[oy - top];
        strip.row_at = met.row_at.data() + at;
        strip.filter_at = met.filter_at.data() + at;
        strip.count = met.begin[oy - top + 1] - at;
        T* const to = reinterpret_cast<T*>(out.data) + n * out.stride_n + o * out.stride_c +
                      oz * out.stride[0] + oy * out.stride[1] + first * out.stride[2];
        strip.out = direct ? reinterpret_cast<W*>(to) : result.data();
        deconv_strip(strip, outs, columns);
        if (direct) continue;
        if (outs == kMostOut && out.stride_c == 1) {
          store_pixels<T>(result.data(), strip.out_channel, to, out.stride[2], columns);
          continue;
        }
        for (int64_t k = 0; k < outs; ++k) {
          const W* const from = result.data() + k * strip.out_channel;
          T* const row = to + k * out.stride_c;
          if (out.stride[2] == 1) {
            for (int64_t i = 0; i < columns; ++i) backsight::store(from[i], row + i);
          } else {
            for (int64_t i = 0; i < columns; ++i)
              backsight::store(from[i], row + i * out.stride[2]);
          }
        }
      }
    }
  }
}

// kPixels outputs of one phase side by side in it, all channels: those that input `a` and the next
// ones meet at the phase's tap 0. Taps [from, to) of the phase meet inputs that there are.
template <typename T, int kPixels>
HD void deconv_pixels(const PixelRow<T>& r, int64_t phase, int64_t a, int64_t from, int64_t to,
                      int64_t o) {
  using W = Widened<T>;
  constexpr int64_t kLanes = kLanesOf<W>;
  for (int64_t c = 0; c < r.channels; c += kLanes) {
    c = min64(c, r.channels - kLanes);  // the last vector overlaps the one before
    Vector<W> sum[kPixels] = {};
    for (int64_t j = 0; j < r.count; ++j) {
      const T* x = r.rows[j] + (a - from) * r.stride_x + c;
      const W* w = r.filters[j] + (phase + from * r.stride) * r.channels + c;
      for (int64_t m = from; m < to; ++m) {
        const Vector<W> tap = load(w);
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; ++i) sum[i] += load_wide(x + i * r.stride_x) * tap;
        x -= r.stride_x;
        w += r.stride * r.channels;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; ++i) {
      if (r.bias) sum[i] += load_wide(r.bias + c);
      if (r.relu) sum[i] = rectified_lanes<W>(sum[i]);
      store_narrow(r.out + (o + i * r.stride) * r.stride_out + c, sum[i]);
    }
  }
}

// Parts [begin, end) of rows of pixels, where each channel is a group.
template <typename T>
void deconv_pixel_rows(const SubpixelDeconvParams& p, const Widened<T>* weights, int64_t width,
                       int64_t begin, int64_t end) {
  using W = Widened<T>;
  constexpr int kPixels = 4;
  const View &x = p.x, &out = p.out;
  const Pool& pool = p.pool;
  const int64_t across = ceil_divide(out.size[2], width), stride = pool.stride[2];
  std::vector<const T*> rows;
  std::vector<const W*> filters;
  for (int64_t task = begin; task < end; ++task) {
    int64_t rest = task / across;
    const int64_t first = task % across * width, last = min64(first + width, out.size[2]);
    const int64_t oy = rest % out.size[1];
    rest /= out.size[1];
    const int64_t oz = rest % out.size[0], n = rest / out.size[0];
    const Taps z = taps_at(p, 0, oz), y = taps_at(p, 1, oy);
    rows.clear();
    filters.clear();
    for (int64_t jz = 0; jz < z.count; ++jz) {
      for (int64_t jy = 0; jy < y.count; ++jy) {
        rows.push_back(reinterpret_cast<const T*>(x.data) + n * x.stride_n +
                       (z.input - jz * pool.window_step[0]) * x.stride[0] +
                       (y.input - jy * pool.window_step[1]) * x.stride[1]);
        const int64_t kz = z.first + jz * pool.cell_step[0], ky = y.first + jy * pool.cell_step[1];
        filters.push_back(weights + (kz * pool.kernel[1] + ky) * pool.kernel[2] * out.c);
      }
    }
    PixelRow<T> r;
    r.rows = rows.data();
    r.filters = filters.data();
    r.count = static_cast<int64_t>(rows.size());
    r.channels = out.c;
    r.stride = stride;
    r.stride_x = x.stride[2];
    r.stride_out = out.stride[2];
    r.bias = reinterpret_cast<const T*>(p.bias);
    r.relu = p.relu;
    r.out =
        reinterpret_cast<T*>(out.data) + n * out.stride_n + oz * out.stride[0] + oy * out.stride[1];
    const int64_t padding = pool.padding[2];
    for (int64_t a = (first + padding) / stride; a * stride < last + padding; a += kPixels) {
      for (int64_t phase = 0; phase < stride; ++phase) {
        const int64_t taps = max64(0, ceil_divide(pool.kernel[2] - phase, stride));
        const int64_t o = a * stride + phase - padding;
        if (o >= first && o + (kPixels - 1) * stride < last && a >= taps - 1 &&
            a + kPixels <= x.size[2]) {
          deconv_pixels<T, kPixels>(r, phase, a, 0, taps, o);
          continue;
        }
        for (int64_t i = 0; i < kPixels; ++i) {
          if (o + i * stride < first || o + i * stride >= last) continue;
          const int64_t from = max64(0, a + i - x.size[2] + 1);
          const int64_t to = max64(from, min64(taps, a + i + 1));
          deconv_pixels<T, 1>(r, phase, a + i, from, to, o + i * stride);
        }
      }
    }
  }
}

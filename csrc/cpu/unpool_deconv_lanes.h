// The inner loops of unpool_deconv. See cpu/each_isa.h.

#include "cpu/wide_lanes.h"

// The lanes of a vector that are not 0, and their numbers from `first` on, side by side; the rest
// of a vector of each is written too. Returns how many they are.
template <typename W>
HD int64_t list_lanes(const Vector<W>& x, int64_t first, W* values, int32_t* numbers) {
  constexpr int64_t kLanes = kLanesOf<W>;
  const int32_t start = static_cast<int32_t>(first);
#if BACKSIGHT_HAS_TARGETS
  if constexpr (kBytes == 64) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i all = _mm512_add_epi32(lanes, _mm512_set1_epi32(start));
    if constexpr (sizeof(W) == 4) {
      const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      _mm512_storeu_ps(values, _mm512_maskz_compress_ps(kept, (__m512)x));
      _mm512_storeu_si512(numbers, _mm512_maskz_compress_epi32(kept, all));
      return __builtin_popcount(kept);
    } else {
      const __mmask8 kept = _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NEQ_UQ);
      _mm512_storeu_pd(values, _mm512_maskz_compress_pd(kept, (__m512d)x));
      _mm512_storeu_si512(numbers, _mm512_maskz_compress_epi32(kept, all));
      return __builtin_popcount(kept);
    }
  }
#endif
  int64_t count = 0;
  for (int64_t k = 0; k < kLanes; ++k) {
    values[count] = x[k];
    numbers[count] = start + static_cast<int32_t>(k);
    count += x[k] != 0;
  }
  return count;
}

// The `channels` of a cell, whole vectors, under `count` windows: those that are not 0.
template <typename T, bool kSet>
HD int64_t list_cell(const Window* windows, int64_t count, const T* y, const uint8_t* switches,
                     int64_t channels, bool relu, Widened<T>* values, int32_t* numbers) {
  using W = Widened<T>;
  using Offsets = Vector<Index<W>>;
  int64_t listed = 0;
  for (int64_t c = 0; c < channels; c += kLanesOf<W>) {
    Vector<W> sum{};
    for (const Window* w = windows; w < windows + count; ++w) {
      const Offsets offset = Offsets{} + static_cast<Index<W>>(w->offset);
      const Offsets match = load_as<Index<W>>(switches + w->switches + c) == offset;
      const Vector<W> value = load_wide(y + w->y + c);
      if (kSet) {
        sum = match ? value : sum;
      } else {
        sum += match ? value : Vector<W>{};
      }
    }
    if constexpr (sizeof(T) == 2 && !kSet)
      if (count > 1) sum = widen_lanes(narrow_lanes(sum, T{}), T{});
    if (relu) sum = rectified_lanes<W>(sum);
    listed += list_lanes<W>(sum, c, values + listed, numbers + listed);
  }
  return listed;
}

// Rows [from, to) of all slices of what y holds of entry n, channels last and each group's whole
// vectors; the channels that fill them up stay 0.
template <typename E>
void channels_to_lanes(const View& v, const char* data, int64_t n, const int64_t (&at)[kAxes],
                       const Interval (&held)[kAxes], int64_t pitch, int64_t columns,
                       int64_t groups, int64_t channels, E* to) {
  const int64_t into = v.c / groups, padded = channels / groups;
  const E* const entry = reinterpret_cast<const E*>(data) + n * v.stride_n;
  constexpr int64_t kBlock = 16;
  for (int64_t z = held[0].lo; z < held[0].hi; ++z) {
    for (int64_t y = held[1].lo; y < held[1].hi; ++y) {
      const E* const row = entry + (z + at[0]) * v.stride[0] + (y + at[1]) * v.stride[1];
      E* const line = to + (z * pitch + y - held[1].lo) * columns * channels;
      for (int64_t c = 0; c < v.c; c += kBlock) {
        const int64_t count = min64(kBlock, v.c - c);
        for (int64_t x = held[2].lo; x < held[2].hi; ++x) {
          const E* const from = row + c * v.stride_c + (x + at[2]) * v.stride[2];
          E* const cell = line + x * channels;
          if (groups == 1) {
            for (int64_t k = 0; k < count; ++k) cell[c + k] = from[k * v.stride_c];
          } else {
            for (int64_t k = 0; k < count; ++k)
              cell[(c + k) / into * padded + (c + k) % into] = from[k * v.stride_c];
          }
        }
      }
    }
  }
}

template <typename T>
struct UnpoolScratch {
  std::vector<WindowLists> lists;  // of one entry
  std::vector<T> y;
  std::vector<uint8_t> switches;
};

// Appends the cells of a band.
template <typename T>
void list_band(const UnpoolDeconvParams& p, const DeconvBands<Widened<T>>& bands, const Band& band,
               UnpoolScratch<T>& scratch, Listed<Widened<T>>& listed) {
  using W = Widened<T>;
  const MaxUnpoolParams& u = p.unpool;
  const View &y = u.y, &v = u.switches;
  const int64_t groups = p.deconv.groups, each = bands.channels / groups;
  const int64_t line = y.size[2] * bands.channels, slice = bands.pitch * line;
  if (scratch.lists.empty() || !scratch.lists.back().fit(band.n)) {
    scratch.lists.clear();
    if (bands.in_place) {
      scratch.lists.emplace_back(u, band.n, std::array{y.stride[0], y.stride[1], y.stride[2]},
                                 std::array{v.stride[0], v.stride[1], v.stride[2]}, false);
    } else {
      const std::array steps{slice, line, bands.channels};
      scratch.lists.emplace_back(u, band.n, steps, steps, false);
    }
  }
  WindowLists& over = scratch.lists.back();
  int64_t from = INT64_MAX, to = 0;  // rows of y
  for (int64_t i = band.first; i < band.last; ++i) {
    const auto cell = over.cell(1, i);
    const Cover& height = over.cover(1, cell.kind);
    if (height.count == 0) continue;
    from = min64(from, cell.o);
    to = max64(to, cell.o + (height.count - 1) * u.pool.window_step[1] + 1);
  }
  if (to == 0) from = 0;

  const T* values = reinterpret_cast<const T*>(y.data) + band.n * y.stride_n;
  const uint8_t* switches =
      reinterpret_cast<const uint8_t*>(v.data) + map_of(u, band.n) * v.stride_n;
  int64_t y_step[kAxes], switch_step[kAxes];
  if (bands.in_place) {
    for (int axis = 0; axis < kAxes; ++axis) {
      switches += first_window(u, band.n, axis) * v.stride[axis];
      y_step[axis] = y.stride[axis];
      switch_step[axis] = v.stride[axis];
    }
  } else {
    grow(scratch.y, y.size[0] * slice);
    grow(scratch.switches, y.size[0] * slice);
    int64_t at[kAxes], none[kAxes] = {};
    Interval held[kAxes];  // windows of y
    for (int axis = 0; axis < kAxes; ++axis) {
      at[axis] = first_window(u, band.n, axis);
      const Interval windows = windows_held(u, band.n, axis);
      held[axis] = {windows.lo - at[axis], windows.hi - at[axis]};
    }
    held[1] = {max64(held[1].lo, from), min64(held[1].hi, to)};
    // Both begin with row `from`, which is held unless there is none.
    channels_to_lanes(y, y.data, band.n, none, held, bands.pitch, y.size[2], groups, bands.channels,
                      scratch.y.data());
    channels_to_lanes(v, v.data, map_of(u, band.n), at, held, bands.pitch, y.size[2], groups,
                      bands.channels, scratch.switches.data());
    values = scratch.y.data();
    switches = scratch.switches.data();
    for (int axis = 0; axis < kAxes; ++axis)
      y_step[axis] = switch_step[axis] = axis == 0 ? slice : axis == 1 ? line : bands.channels;
  }

  const View& x = u.x;
  int64_t count = listed.begin.back();
  for (int64_t z = 0; z < x.size[0]; ++z) {
    const auto depth = over.cell(0, z);
    for (int64_t row = band.first; row < band.last; ++row) {
      const auto height = over.cell(1, row);
      const int64_t most = count + x.size[2] * bands.channels + kBytes;
      if (static_cast<int64_t>(listed.values.size()) < most) {
        listed.values.resize(static_cast<size_t>(2 * most));
        listed.channels.resize(static_cast<size_t>(2 * most));
      }
      const int64_t o = bands.in_place ? height.o : height.o - from;
      const int64_t y_row = depth.o * y_step[0] + o * y_step[1];
      const int64_t switch_row = depth.o * switch_step[0] + o * switch_step[1];
      for (int64_t i = 0; i < x.size[2]; ++i) {
        const auto width = over.cell(2, i);
        const std::vector<Window>& windows = over.list(depth.kind, height.kind, width.kind);
        const auto many = static_cast<int64_t>(windows.size());
        for (int64_t g = 0; g < groups; ++g) {
          if (many > 0) {
            const T* const cell = values + y_row + width.o * y_step[2];
            const uint8_t* const at = switches + switch_row + width.o * switch_step[2];
            W* const to_values = listed.values.data() + count;
            int32_t* const to_channels = listed.channels.data() + count;
            count += u.set
                         ? list_cell<T, true>(windows.data(), many, cell + g * each, at + g * each,
                                              each, u.relu, to_values, to_channels)
                         : list_cell<T, false>(windows.data(), many, cell + g * each, at + g * each,
                                               each, u.relu, to_values, to_channels);
          }
          listed.begin.push_back(count);
        }
      }
    }
  }
}

template <typename W, int kVectors>
void add_cells(const CellRow<W>& row) {
  constexpr int64_t kLanes = kLanesOf<W>;
  for (int64_t i = 0; i < row.cells; ++i) {
    const int64_t begin = row.begin[i * row.step], end = row.begin[i * row.step + 1];
    if (begin == end) continue;
    Vector<W> sum[kVectors] = {};
    for (int64_t k = begin; k < end; ++k) {
      const W* const weights = row.weights + row.channels[k] * (kVectors * kLanes);
      const Vector<W> value = row.values[k] - Vector<W>{};
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[v] += value * load(weights + v * kLanes);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      if (row.to[v] == nullptr) continue;
      W* const to = row.to[v] + i * row.advance;
      if (row.partial[v]) sum[v] = masked<W>(sum[v], load(row.mask));
      store(to, load(to) + sum[v]);
    }
  }
}

template <typename W>
void add_cells(const CellRow<W>& row, int vectors) {
  switch (vectors) {
#define BACKSIGHT_ADD(n) \
  case n: return add_cells<W, n>(row);
    BACKSIGHT_ADD(1)
    BACKSIGHT_ADD(2)
    BACKSIGHT_ADD(3)
    BACKSIGHT_ADD(4)
    BACKSIGHT_ADD(5)
    BACKSIGHT_ADD(6)
    BACKSIGHT_ADD(7)
    BACKSIGHT_ADD(8)
    BACKSIGHT_ADD(9)
    BACKSIGHT_ADD(10)
    BACKSIGHT_ADD(11)
    BACKSIGHT_ADD(12)
    BACKSIGHT_ADD(13)
    BACKSIGHT_ADD(14)
    BACKSIGHT_ADD(15)
#undef BACKSIGHT_ADD
    default: return add_cells<W, 16>(row);
  }
}

// A tile's part of all cells of a band; `begin` are the cells' lists, `sums` the band's scratch.
template <typename W>
void add_band(const SubpixelDeconvParams& d, const DeconvBands<W>& bands, const Band& band,
              const Tile& tile, const W* weights, const Listed<W>& listed, const int64_t* begin,
              W* sums) {
  const Pool& pool = d.pool;
  CellRow<W> row;
  row.step = d.groups;
  row.cells = d.x.size[2];
  row.values = listed.values.data();
  row.channels = listed.channels.data();
  row.weights = weights;
  row.partial = tile.partial;
  row.mask = bands.mask.data();
  row.advance = pool.stride[2] * bands.block;
  for (int64_t z = 0; z < d.x.size[0]; ++z) {
    for (int64_t y = band.first; y < band.last; ++y) {
      row.begin = begin + (z * (band.last - band.first) + y - band.first) * row.cells * row.step;
      bool any = false;
      for (int v = 0; v < tile.vectors; ++v) {
        const int64_t kz = tile.line[v] / pool.kernel[1], ky = tile.line[v] % pool.kernel[1];
        const int64_t oz = cell_at(pool, 0, z, kz), oy = cell_at(pool, 1, y, ky);
        const bool inside = 0 <= oz && oz < d.out.size[0] && band.top <= oy && oy < band.bottom;
        row.to[v] =
            inside ? sums + (oz * bands.height + oy - band.top) * bands.row + tile.at[v] : nullptr;
        any |= inside;
      }
      if (any) add_cells(row, tile.vectors);
    }
  }
}

// The sums of a block of channels of a band to the output; `used` of them are there.
template <typename T>
void write_band(const SubpixelDeconvParams& d, const DeconvBands<Widened<T>>& bands,
                const Band& band, int64_t channel, int64_t used, const Widened<T>* sums) {
  using W = Widened<T>;
  constexpr int64_t kLanes = kLanesOf<W>;
  const View& out = d.out;
  const T* const bias = d.bias ? reinterpret_cast<const T*>(d.bias) + channel : nullptr;
  for (int64_t z = 0; z < out.size[0]; ++z) {
    for (int64_t y = band.top; y < band.bottom; ++y) {
      const W* const from =
          sums + (z * bands.height + y - band.top) * bands.row + d.pool.padding[2] * bands.block;
      T* const to = reinterpret_cast<T*>(out.data) + band.n * out.stride_n +
                    channel * out.stride_c + z * out.stride[0] + y * out.stride[1];
      if (out.stride_c == 1 && used >= kLanes) {
        for (int64_t x = 0; x < out.size[2]; ++x) {
          for (int64_t c = 0; c < used; c += kLanes) {
            c = min64(c, used - kLanes);  // the last vector overlaps the one before
            Vector<W> sum = load(from + x * bands.block + c);
            if (bias) sum += load_wide(bias + c);
            store_narrow(to + x * out.stride[2] + c, sum);
          }
        }
        continue;
      }
      constexpr int64_t kCells = 32;  // few enough to stay in the nearest cache for all channels
      for (int64_t first = 0; first < out.size[2]; first += kCells) {
        const int64_t end = min64(first + kCells, out.size[2]);
        for (int64_t c = 0; c < used; ++c) {
          T* const line = to + c * out.stride_c;
          const W more = bias ? widen(bias[c]) : W{0};
          for (int64_t x = first; x < end; ++x) {
            const W sum = from[x * bands.block + c];
            backsight::store(bias ? sum + more : sum, line + x * out.stride[2]);
          }
        }
      }
    }
  }
}

// Bands [begin, end) of all entries, or blocks [begin, end) of all bands.
template <typename T>
void deconv_bands(const UnpoolDeconvParams& p, const DeconvBands<Widened<T>>& bands, int64_t begin,
                  int64_t end) {
  using W = Widened<T>;
  const SubpixelDeconvParams& d = p.deconv;
  const int64_t blocks = d.groups * bands.blocks, weights = bands.filter * bands.into;
  const int64_t size = d.out.size[0] * bands.height * bands.row;
  const Interval of_bands =
      bands.by_blocks ? Interval{0, d.out.n * bands.down} : Interval{begin, end};
  const Interval of_blocks = bands.by_blocks ? Interval{begin, end} : Interval{0, blocks};
  std::unique_ptr<W[]> packed(bands.by_blocks ? new W[static_cast<size_t>(weights + kAlign)]
                                              : nullptr);
  std::vector<W> held;
  UnpoolScratch<T> scratch;
  Listed<W> listed;
  std::vector<Band> group;
  std::vector<int64_t> starts;  // of their cells
  for (int64_t first = of_bands.lo; first < of_bands.hi; first += bands.together) {
    const int64_t last = min64(first + bands.together, of_bands.hi);
    group.clear();
    starts.clear();
    listed.begin.assign(1, 0);
    for (int64_t b = first; b < last; ++b) {
      const int64_t n = divide(b, bands.down);
      group.push_back(band_at(d, bands.height, n, b - n * bands.down));
      starts.push_back(static_cast<int64_t>(listed.begin.size()) - 1);
      list_band<T>(p, bands, group.back(), scratch, listed);
    }
    for (int64_t block = of_blocks.lo; block < of_blocks.hi; ++block) {
      const int64_t g = block / bands.blocks, of_group = block % bands.blocks;
      W* taps = aligned(packed.get());
      if (bands.by_blocks) {
        pack_block<T>(p, bands, block, 0, bands.into, taps);
      } else {
        taps = aligned(bands.weights.get()) + block * weights;
      }
      held.assign(group.size() * static_cast<size_t>(size) + kBytes + kAlign, W{0});
      W* const sums = aligned(held.data());
      for (const Tile& tile : bands.tiles)
        for (size_t b = 0; b < group.size(); ++b)
          add_band<W>(d, bands, group[b], tile, taps + tile.weights * bands.into, listed,
                      listed.begin.data() + starts[b] + g, sums + static_cast<int64_t>(b) * size);
      const int64_t channel = g * bands.onto + of_group * bands.block;
      const int64_t used = min64(bands.block, bands.onto - of_group * bands.block);
      for (size_t b = 0; b < group.size(); ++b)
        write_band<T>(d, bands, group[b], channel, used, sums + static_cast<int64_t>(b) * size);
    }
  }
}

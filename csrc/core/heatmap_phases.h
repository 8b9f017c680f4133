// The CUDA kernels of heatmap, as host-and-device code: cuda/heatmap.cu launches them, and
// cpu/heatmap_phases.cpp loops over their blocks and threads, so that tests run them without a GPU.
//
// A kernel is a struct with
//   blocks()                        how many blocks there are to do (may be read from the
//   workspace), phases(block)                   how many phases a block has, run(phase, block, t,
//   shared)    one phase of thread t (of kThreads).
// Between two phases of a block lies a barrier; threads keep nothing but what is in `shared`.
//
// Everything is decided on the device: how finely the boxes cut the map, how many digits an output
// needs. The host knows bounds only, and sizes the workspace and the launches by them.
#pragma once

#include <type_traits>

#include "core/heatmap.h"

namespace backsight {
namespace heatmap {

constexpr int kThreads = 256;
constexpr int64_t kLeastChunk = int64_t{256} << 20, kMostChunk = int64_t{1} << 30;

HD int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
HD int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// a / b and a % b for a >= 0, b > 0; 64-bit division is slow on a GPU.
HD int64_t divide(int64_t a, int64_t b, int64_t* remainder) {
  if (((a | b) >> 32) == 0) {
    const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    *remainder = static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b);
    return q;
  }
  *remainder = a % b;
  return a / b;
}

HD void atomic_add(uint64_t* at, uint64_t value) {
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
#else
  *at += value;
#endif
}

HD void atomic_max(uint64_t* at, uint64_t value) {
#ifdef __CUDA_ARCH__
  atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
#else
  if (*at < value) *at = value;
#endif
}

// The finite nonzero magnitudes of one output; all zero before the first.
struct Extent {
  uint64_t inverse;  // ~ of the smallest
  uint64_t largest;
  uint64_t bad;  // 1 if some score is not finite
};

// What the kernels work on. Pointers lie in one workspace, in this order.
struct Workspace {
  int64_t* cells;           // (3) segments along each axis
  uint64_t* most;           // (1) the most boxes over one pixel
  Extent* extents;          // (K)
  int32_t* segment[kAxes];  // (size + 1) of every coordinate
  int64_t zeroed;           // bytes up to here start as zero
  int64_t* edges[kAxes];    // (cells + 1)
  double* count;            // (cells) boxes over each cell, at least 1
  Wide* state;              // (slots, cells) for outputs that need many levels
  uint64_t* sums;           // (chunk, levels, cells)
  char* values;             // (chunk, cells) of the dtype
  int64_t most_cells;       // bound on the number of cells
  int64_t most_segments[kAxes];
  int64_t slots, chunk;
  int64_t bytes;
};

// Levels that are summed side by side; outputs that need more, or have a bad score, take the slow
// way through WideSums.
template <typename T>
constexpr int kLevels = sizeof(T) == 8 ? 2 : 1;

// Lays the workspace out at `base`, which may be null to learn its size.
template <typename T>
Workspace make_workspace(const HeatmapParams& p, char* base) {
  Workspace w{};
  w.most_cells = 1;
  for (int axis = 0; axis < kAxes; ++axis) {
    w.most_segments[axis] = smaller(2 * p.n + 1, p.size[axis]);
    w.most_cells *= w.most_segments[axis];
  }
  const int64_t each = w.most_cells * int64_t{8 * kLevels<T> + sizeof(T)};
  // As many outputs at a time as fit in about the memory of the output itself.
  const int64_t output = p.k * p.size[0] * p.size[1] * p.size[2] * int64_t{sizeof(T)};
  const int64_t budget = larger(kLeastChunk, smaller(output, kMostChunk));
  w.chunk = larger(1, smaller(p.k, budget / larger(each, 1)));
  w.slots = larger(1, smaller(smaller(w.chunk, 16),
                              kLeastChunk / larger(w.most_cells * int64_t{sizeof(Wide)}, 1)));
  int64_t at = 0;
  const auto take = [&](auto** pointer, int64_t count) {
    using Element = std::remove_reference_t<decltype(**pointer)>;
    *pointer =
        reinterpret_cast<Element*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(at));
    at += (count * int64_t{sizeof(Element)} + 15) / 16 * 16;
  };
  take(&w.cells, kAxes);
  take(&w.most, 1);
  take(&w.extents, p.k);
  for (int axis = 0; axis < kAxes; ++axis) take(&w.segment[axis], p.size[axis] + 1);
  w.zeroed = at;
  for (int axis = 0; axis < kAxes; ++axis) take(&w.edges[axis], w.most_segments[axis] + 1);
  take(&w.count, w.most_cells);
  take(&w.state, w.slots * w.most_cells);
  take(&w.sums, w.chunk * kLevels<T> * w.most_cells);
  take(&w.values, w.chunk * w.most_cells * int64_t{sizeof(T)});
  w.bytes = at;
  return w;
}

HD int64_t cells_of(const Workspace& w) { return w.cells[0] * w.cells[1] * w.cells[2]; }

// Marks the edges of all boxes in w.segment.
struct Mark {
  HeatmapParams p;
  Workspace w;
  struct Shared {};

  HD int64_t blocks() const { return blocks_for(p.n + 1); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    const int64_t n = block * kThreads + t - 1;
    if (n >= p.n) return;
    int64_t lo[kAxes] = {0, 0, 0}, hi[kAxes] = {p.size[0], p.size[1], p.size[2]};
    if (n >= 0 && !clip_box(p, n, lo, hi)) return;  // thread 0 marks the edges of the map
    for (int axis = 0; axis < kAxes; ++axis)
      w.segment[axis][lo[axis]] = w.segment[axis][hi[axis]] = 1;
  }
};

// Inclusive prefix sums of a row by one block, tile after tile, in four phases each.
template <typename T>
struct RowScan {
  static constexpr int kEach = 4, kTile = kThreads * kEach, kGroup = 16;
  struct Shared {
    T values[kTile];
    T partial[kThreads];         // sums of each thread's values, then of all before in its group
    T group[kThreads / kGroup];  // sums of each group, then of all before
    T carry;
  };

  static HD int64_t phases(int64_t length) { return 4 * ((length + kTile - 1) / kTile); }

  // put(i, sum, own) receives the sum up to and with element i, and that element.
  template <typename Get, typename Put>
  static HD void run(int64_t phase, int64_t length, int t, Shared* s, const Get& get,
                     const Put& put) {
    const int64_t first = phase / 4 * kTile + t * kEach;
    switch (phase % 4) {
      case 0: {
        T sum = 0;
        for (int i = 0; i < kEach; ++i) {
          const T value = first + i < length ? get(first + i) : T{0};
          s->values[t * kEach + i] = value;
          sum += value;
        }
        s->partial[t] = sum;
        if (phase == 0 && t == 0) s->carry = 0;
        break;
      }
      case 1:
        if (t < kThreads / kGroup) {
          T sum = 0;
          for (int i = t * kGroup; i < (t + 1) * kGroup; ++i) {
            const T own = s->partial[i];
            s->partial[i] = sum;
            sum += own;
          }
          s->group[t] = sum;
        }
        break;
      case 2:
        if (t == 0) {
          for (int i = 0; i < kThreads / kGroup; ++i) {
            const T own = s->group[i];
            s->group[i] = s->carry;
            s->carry += own;
          }
        }
        break;
      default: {
        T sum = s->partial[t] + s->group[t / kGroup];
        for (int i = 0; i < kEach; ++i) {
          const T own = s->values[t * kEach + i];
          sum += own;
          if (first + i < length) put(first + i, sum, own);
        }
      }
    }
  }
};

// Zeroes the sums of `planes` grids of cells.
struct Clear {
  Workspace w;
  int64_t planes;
  struct Shared {};

  HD int64_t blocks() const { return blocks_for(planes * cells_of(w)); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    const int64_t i = block * kThreads + t;
    if (i < planes * cells_of(w)) w.sums[i] = 0;
  }
};

// Turns the marks of an axis into segment numbers and edges; one block an axis.
struct Segments {
  HeatmapParams p;
  Workspace w;
  using Scan = RowScan<int32_t>;
  using Shared = Scan::Shared;

  HD int64_t blocks() const { return kAxes; }
  HD int64_t phases(int64_t axis) const { return Scan::phases(p.size[axis] + 1); }
  HD void run(int64_t phase, int64_t axis, int t, Shared* shared) const {
    int32_t* const segment = w.segment[axis];
    int64_t* const edges = w.edges[axis];
    Scan::run(
        phase, p.size[axis] + 1, t, shared, [&](int64_t i) { return segment[i]; },
        [&](int64_t i, int32_t sum, int32_t own) {
          segment[i] = sum - 1;
          if (own != 0) edges[sum - 1] = i;
          if (i == p.size[axis]) w.cells[axis] = sum - 1;
        });
  }
};

// Finds the magnitudes of the scores of each output.
template <typename T>
struct Extents {
  HeatmapParams p;
  Workspace w;
  struct Shared {};

  // A thread stays with one output: the stride of all threads is a multiple of K.
  static HD int64_t rows(int64_t n, int64_t k) { return smaller(n, (65536 + k - 1) / k); }
  HD int64_t blocks() const { return blocks_for(rows(p.n, p.k) * p.k); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    using Float = decltype(widen(T{}));
    const int64_t step = rows(p.n, p.k);
    int64_t k;
    int64_t n = divide(block * kThreads + t, p.k, &k);
    if (n >= step) return;
    uint64_t inverse = 0, most = 0, bad = 0;
    for (; n < p.n; n += step) {
      const Float x = widen(reinterpret_cast<const T*>(p.scores)[n * p.k + k]);
      const uint64_t m = magnitude(x);
      if (!is_finite(x)) {
        bad = 1;
      } else if (m != 0) {
        if (inverse < ~m) inverse = ~m;
        if (most < m) most = m;
      }
    }
    Extent& extent = w.extents[k];
    if (bad != 0) atomic_max(&extent.bad, bad);
    if (most == 0) return;
    atomic_max(&extent.inverse, inverse);
    atomic_max(&extent.largest, most);
  }
};

template <typename T>
HD Scale scale_of(const Workspace& w, int64_t k, int width) {
  using Float = decltype(widen(T{}));
  using Bits = typename Format<Float>::Bits;
  const Extent extent = w.extents[k];
  return make_scale<Float>(static_cast<Bits>(~extent.inverse), static_cast<Bits>(extent.largest),
                           extent.bad != 0, width);
}

template <typename T>
HD bool is_wide(const Scale& scale) {
  return scale.bad || scale.levels > kLevels<T>;
}

// Adds `value` to the difference array of box n in `sums`.
HD void add_box(const HeatmapParams& p, const Workspace& w, int64_t n, uint64_t value,
                uint64_t* sums) {
  int64_t lo[kAxes], hi[kAxes];
  if (!clip_box(p, n, lo, hi)) return;
  for (int axis = 0; axis < kAxes; ++axis) {
    lo[axis] = w.segment[axis][lo[axis]];
    hi[axis] = w.segment[axis][hi[axis]];
  }
  const int step = 1 << (kAxes - p.dims);
  for (int corner = 0; corner < 8; corner += step) {
    const int64_t at = corner_index(corner, lo, hi, w.cells);
    if (at >= 0) atomic_add(sums + at, corner_is_negative(corner) ? 0 - value : value);
  }
}

// One prefix sum along an axis of a grid of cells: line `i` of the lines across all axes but that.
HD void prefix_line(const int64_t* cells, int axis, int64_t i, uint64_t* sums) {
  int64_t stride = 1;
  for (int later = axis + 1; later < kAxes; ++later) stride *= cells[later];
  int64_t inner;
  uint64_t* at = sums + divide(i, stride, &inner) * stride * cells[axis];
  at += inner;
  uint64_t sum = 0;
  for (int64_t j = 0; j < cells[axis]; ++j, at += stride) *at = sum += *at;
}

// Counts boxes, or scatters the digits of outputs [k0, k0 + outputs), into the difference arrays.
template <typename T, bool kCount>
struct Scatter {
  HeatmapParams p;
  Workspace w;
  int64_t k0, outputs;
  struct Shared {};

  HD int64_t blocks() const { return blocks_for(Extents<T>::rows(p.n, outputs) * outputs); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    const int64_t step = Extents<T>::rows(p.n, outputs);
    int64_t k;
    int64_t n = divide(block * kThreads + t, outputs, &k);
    if (n >= step) return;
    if (kCount) {
      for (; n < p.n; n += step) add_box(p, w, n, 1, w.sums);
      return;
    }
    const int width = digit_width(static_cast<int64_t>(*w.most));
    const Scale scale = scale_of<T>(w, k0 + k, width);
    if (is_wide<T>(scale)) return;
    const int64_t cells = cells_of(w);
    for (; n < p.n; n += step) {
      const auto x = widen(reinterpret_cast<const T*>(p.scores)[n * p.k + k0 + k]);
      for (int level = 0; level < scale.levels; ++level) {
        add_box(p, w, n, digit(x, scale.lowest, width, level),
                w.sums + (k * kLevels<T> + level) * cells);
      }
    }
  }
};

// Prefix sums along x of `planes` grids of cells: a block a row if rows are long, else a thread.
struct PrefixX {
  Workspace w;
  int64_t planes;
  using Scan = RowScan<uint64_t>;
  using Shared = Scan::Shared;

  HD bool by_block() const { return w.cells[2] > 64; }
  HD int64_t rows() const { return planes * w.cells[0] * w.cells[1]; }
  HD int64_t blocks() const { return by_block() ? rows() : blocks_for(rows()); }
  HD int64_t phases(int64_t) const { return by_block() ? Scan::phases(w.cells[2]) : 1; }
  HD void run(int64_t phase, int64_t block, int t, Shared* shared) const {
    const int64_t length = w.cells[2];
    if (by_block()) {
      uint64_t* const row = w.sums + block * length;
      Scan::run(
          phase, length, t, shared, [&](int64_t i) { return row[i]; },
          [&](int64_t i, uint64_t sum, uint64_t) { row[i] = sum; });
    } else if (block * kThreads + t < rows()) {
      prefix_line(w.cells, 2, block * kThreads + t, w.sums);
    }
  }
};

// Prefix sums along y, where there is a z to follow.
struct PrefixY {
  Workspace w;
  int64_t planes;
  struct Shared {};

  HD int64_t lines() const { return planes * w.cells[0] * w.cells[2]; }
  HD int64_t blocks() const { return blocks_for(lines()); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    if (block * kThreads + t < lines()) prefix_line(w.cells, 1, block * kThreads + t, w.sums);
  }
};

// The last prefix sum, along z in 3-D and y else, which ends in counts or values.
template <typename T, bool kCount>
struct Last {
  HeatmapParams p;
  Workspace w;
  int64_t k0, outputs;
  struct Shared {};

  HD int64_t steps() const { return p.dims == 3 ? w.cells[0] : w.cells[1]; }
  HD int64_t columns() const { return p.dims == 3 ? w.cells[1] * w.cells[2] : w.cells[2]; }
  HD int64_t blocks() const { return blocks_for(outputs * columns()); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    const int64_t stride = columns(), cells = cells_of(w);
    int64_t column;
    const int64_t k = divide(block * kThreads + t, stride, &column);
    if (k >= outputs) return;
    if (kCount) {
      uint64_t sum = 0, most = 0;
      for (int64_t i = column; i < cells; i += stride) {
        sum += w.sums[i];
        w.count[i] = sum == 0 ? 1.0 : to_double(sum);
        if (most < sum) most = sum;
      }
      atomic_max(w.most, most);
      return;
    }
    using Float = decltype(widen(T{}));
    const int width = digit_width(static_cast<int64_t>(*w.most));
    const Scale scale = scale_of<T>(w, k0 + k, width);
    if (is_wide<T>(scale)) return;
    const int unit = unit_of<Float>(scale);
    T* const values = reinterpret_cast<T*>(w.values) + k * cells;
    const uint64_t* const sums = w.sums + k * kLevels<T> * cells;
    uint64_t sum[kLevels<T>] = {};
    for (int64_t i = column; i < cells; i += stride) {
      const double count = p.mean ? w.count[i] : 1.0;
      if constexpr (kLevels<T> == 1) {
        sum[0] += sums[i];
        narrow(finish(sum[0], count, power_of_two(unit)), values + i);
      } else {
        Wide wide;
        for (int level = kLevels<T> - 1; level >= 0; --level) {
          if (level >= scale.levels) continue;
          sum[level] += sums[level * cells + i];
          add_level(&wide, sum[level], width, level);
        }
        narrow(finish(wide, count, unit, width), values + i);
      }
    }
  }
};

// Outputs that need more levels than are summed side by side, or that hold NaN or infinities: a
// block an output, one level after the other. Launched with at most w.slots blocks.
template <typename T>
struct WideSums {
  HeatmapParams p;
  Workspace w;
  int64_t k0, outputs;
  struct Shared {};
  using Float = decltype(widen(T{}));

  HD int width() const { return digit_width(static_cast<int64_t>(*w.most)); }
  HD int64_t blocks() const { return outputs; }
  HD int64_t phases(int64_t k) const {
    const Scale scale = scale_of<T>(w, k0 + k, width());
    return is_wide<T>(scale) ? 6 * (scale.levels + scale.bad) : 0;
  }
  HD void run(int64_t phase, int64_t k, int t, Shared*) const {
    const int digit_bits = width();
    const Scale scale = scale_of<T>(w, k0 + k, digit_bits);
    const int level = scale.levels - 1 - static_cast<int>(phase / 6);  // -1: the bad scores
    const int64_t cells = cells_of(w);
    uint64_t* const sums = w.sums + k * kLevels<T> * cells;
    switch (phase % 6) {
      case 0:
        for (int64_t i = t; i < cells; i += kThreads) sums[i] = 0;
        break;
      case 1:
        for (int64_t n = t; n < p.n; n += kThreads) {
          const Float x = widen(reinterpret_cast<const T*>(p.scores)[n * p.k + k0 + k]);
          const uint64_t value = level >= 0 ? digit(x, scale.lowest, digit_bits, level)
                                            : uint64_t{is_finite(x) ? 0u : 1u};
          if (value != 0) add_box(p, w, n, value, sums);
        }
        break;
      case 2:
      case 3:
      case 4: {
        const int axis = 4 - static_cast<int>(phase % 6);
        const int64_t lines = cells / w.cells[axis];
        for (int64_t i = t; i < lines; i += kThreads) prefix_line(w.cells, axis, i, sums);
        break;
      }
      default: {
        T* const values = reinterpret_cast<T*>(w.values) + k * cells;
        Wide* const state = w.state + k % w.slots * cells;
        for (int64_t i = t; i < cells; i += kThreads) {
          if (level < 0) {
            if (sums[i] != 0) narrow(bit_cast<double>(uint64_t{0x7ff8} << 48), values + i);
            continue;
          }
          Wide wide = level == scale.levels - 1 ? Wide{} : state[i];
          add_level(&wide, sums[i], digit_bits, level);
          if (level > 0) {
            state[i] = wide;
          } else {
            const double count = p.mean ? w.count[i] : 1.0;
            narrow(finish(wide, count, unit_of<Float>(scale), digit_bits), values + i);
          }
        }
      }
    }
  }
};

// Sixteen bytes to an aligned place, past the caches.
struct alignas(16) Sixteen {
  uint32_t word[4];
};

HD void stream(const Sixteen& from, void* to) {
#ifdef __CUDA_ARCH__
  __stcs(reinterpret_cast<uint4*>(to),
         make_uint4(from.word[0], from.word[1], from.word[2], from.word[3]));
#else
  memcpy(to, &from, sizeof(from));
#endif
}

// Writes the map from the values of its cells. A thread holds one piece of a row, of 16 bytes where
// the rows allow, and writes it to all rows down to the next edge.
template <typename T, bool kAligned>
struct Expand {
  HeatmapParams p;
  Workspace w;
  int64_t k0, outputs;
  struct Shared {};
  static constexpr int kEach = kAligned ? 16 / sizeof(T) : 1;

  HD int64_t items() const { return outputs * p.size[0] * w.cells[1] * (p.size[2] / kEach); }
  HD int64_t blocks() const { return blocks_for(items()); }
  HD int64_t phases(int64_t) const { return 1; }
  HD void run(int64_t, int64_t block, int t, Shared*) const {
    const int64_t item = block * kThreads + t;
    if (item >= items()) return;
    int64_t piece, segment_y, z;
    int64_t k = divide(item, p.size[2] / kEach, &piece);
    k = divide(k, w.cells[1], &segment_y);
    k = divide(k, p.size[0], &z);
    const T* const from = reinterpret_cast<const T*>(w.values) + k * cells_of(w) +
                          (w.segment[0][z] * w.cells[1] + segment_y) * w.cells[2];
    const int64_t x = piece * kEach;
    T* to = reinterpret_cast<T*>(p.out) + ((k0 + k) * p.size[0] + z) * p.size[1] * p.size[2] + x;
    const int64_t end = w.edges[1][segment_y + 1];
    int64_t y = w.edges[1][segment_y];
    to += y * p.size[2];
    if constexpr (kAligned) {
      T values[kEach];
      for (int i = 0; i < kEach; ++i) values[i] = from[w.segment[2][x + i]];
      const Sixteen sixteen = bit_cast<Sixteen>(values);
      for (; y < end; ++y, to += p.size[2]) stream(sixteen, to);
    } else {
      const T value = from[w.segment[2][x]];
      for (; y < end; ++y, to += p.size[2]) *to = value;
    }
  }
};

// The whole of heatmap: calls zero(pointer, bytes) and launch(kernel, most_blocks) in order.
template <typename T, typename Zero, typename Launch>
void run_kernels(const HeatmapParams& p, const Zero& zero, const Launch& launch) {
  const Workspace w = make_workspace<T>(p, p.workspace);
  const int64_t row_bytes = p.size[2] * int64_t{sizeof(T)};
  const bool aligned = row_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  const auto last_axis = [&](int64_t outputs) {
    return blocks_for(outputs * w.most_cells / w.most_segments[p.dims == 3 ? 0 : 1]);
  };
  const auto prefix = [&](int64_t planes) {
    launch(PrefixX{w, planes}, planes * w.most_segments[0] * w.most_segments[1]);
    if (p.dims == 3)
      launch(PrefixY{w, planes}, blocks_for(planes * w.most_segments[0] * w.most_segments[2]));
  };
  zero(w.cells, w.zeroed);
  launch(Mark{p, w}, blocks_for(p.n + 1));
  launch(Segments{p, w}, kAxes);
  launch(Clear{w, 1}, blocks_for(w.most_cells));
  const Scatter<T, true> counts{p, w, 0, 1};
  launch(counts, counts.blocks());
  prefix(1);
  launch(Last<T, true>{p, w, 0, 1}, last_axis(1));
  const Extents<T> extents{p, w};
  launch(extents, extents.blocks());
  for (int64_t k0 = 0; k0 < p.k; k0 += w.chunk) {
    const int64_t outputs = smaller(w.chunk, p.k - k0), planes = outputs * kLevels<T>;
    launch(Clear{w, planes}, blocks_for(planes * w.most_cells));
    const Scatter<T, false> digits{p, w, k0, outputs};
    launch(digits, digits.blocks());
    prefix(planes);
    launch(Last<T, false>{p, w, k0, outputs}, last_axis(outputs));
    launch(WideSums<T>{p, w, k0, outputs}, smaller(outputs, w.slots));
    if (aligned) {
      const int64_t pieces = row_bytes / 16;
      launch(Expand<T, true>{p, w, k0, outputs},
             blocks_for(outputs * p.size[0] * w.most_segments[1] * pieces));
    } else {
      launch(Expand<T, false>{p, w, k0, outputs},
             blocks_for(outputs * p.size[0] * w.most_segments[1] * p.size[2]));
    }
  }
}

inline int64_t outputs_of(const HeatmapParams& p) {
  return p.k * p.size[0] * p.size[1] * p.size[2];
}

}  // namespace heatmap
}  // namespace backsight

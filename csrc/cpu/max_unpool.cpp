#include "core/max_unpool.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/switches.h"
#include "cpu/window_lists.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

// Cells to be computed: the channels of one cell or, a vector each, several cells.
template <typename T, typename Switch>
struct Task {
  const Window* windows;  // in raster order
  int64_t count;          // of windows
  const T* y;
  const Switch* switches;
  T* to;
  int64_t cells;
};
template <typename T, typename Switch>
struct Tasks {
  std::vector<Task<T, Switch>> list;
  bool set, relu;
};

// What becomes of the windows that point to a cell: the last of them counts, all are added up, or
// there is one at most, as a sum.
enum class Merge { kLast, kSum, kOnly };

#define BACKSIGHT_VECTOR_CODE "cpu/max_unpool_lanes.h"
#include "cpu/each_isa.h"
#include "cpu/planes_dispatch.h"

// Each task is one cell of `channels` channels, at least 16 bytes of them.
template <typename T>
void spread(const Tasks<T, uint8_t>& tasks, int64_t channels) {
  BACKSIGHT_DISPATCH(std::min<int64_t>(vector_bytes(), channels * int64_t{sizeof(T)}),
                     spread(tasks, channels));
}
// Each task is cells of a vector each, which are to_step apart.
template <typename T>
void spread(const Tasks<T, Index<T>>& tasks, int64_t to_step) {
  BACKSIGHT_DISPATCH(vector_bytes(), spread(tasks, to_step));
}
bool are_at_most(const uint8_t* switches, int64_t rows, int64_t step, int64_t count, uint8_t last) {
  BACKSIGHT_DISPATCH(vector_bytes(), are_at_most(switches, rows, step, count, last));
}
bool are_among_each(const uint8_t* switches, int64_t count, const uint32_t* valid) {
  BACKSIGHT_DISPATCH(vector_bytes(), are_among_each(switches, count, valid));
}
bool are_among_same(const uint8_t* switches, int64_t count, const uint32_t* valid) {
  BACKSIGHT_DISPATCH(vector_bytes(), are_among_same(switches, count, valid));
}

// Rows [begin, end) of an x whose channels are last; a vector holds channels.
template <typename T, bool kStream>
void unpool_pixels(const MaxUnpoolParams& p, int64_t begin, int64_t end) {
  const View &x = p.x, &y = p.y, &v = p.switches;
  const int64_t length = x.size[2] * x.c;
  std::vector<T> buffer(static_cast<size_t>(kStream ? length : 0));
  std::vector<WindowLists> lists;  // of one entry
  Tasks<T, uint8_t> tasks{{}, p.set, p.relu};
  Writer<kStream> writer(x.data + begin * length * int64_t{sizeof(T)});
  int64_t before = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t slice = divide(i, x.size[1]), n = divide(slice, x.size[0]);
    if (before < 0 || (n != before && !lists.back().fit(n))) {
      lists.clear();
      lists.emplace_back(p, n, std::array{y.stride[0], y.stride[1], y.stride[2]},
                         std::array{v.stride[0], v.stride[1], v.stride[2]}, false);
    }
    before = n;
    WindowLists& over = lists.back();
    const auto depth = over.cell(0, slice - n * x.size[0]);
    const auto height = over.cell(1, i - slice * x.size[1]);
    const int64_t from = n * y.stride_n + depth.o * y.stride[0] + height.o * y.stride[1];
    int64_t switches = map_of(p, n) * v.stride_n + depth.o * v.stride[0] + height.o * v.stride[1];
    for (int axis = 0; axis < kAxes; ++axis) switches += first_window(p, n, axis) * v.stride[axis];
    T* to = kStream ? buffer.data() : reinterpret_cast<T*>(x.data) + i * length;
    tasks.list.clear();
    for (int64_t at = 0; at < x.size[2]; ++at, to += x.c) {
      const auto width = over.cell(2, at);
      const std::vector<Window>& list = over.list(depth.kind, height.kind, width.kind);
      tasks.list.push_back(
          {list.data(), static_cast<int64_t>(list.size()),
           reinterpret_cast<const T*>(y.data) + from + width.o * y.stride[2],
           reinterpret_cast<const uint8_t*>(v.data) + switches + width.o * v.stride[2], to, 1});
    }
    spread(tasks, x.c);
    if (kStream)
      writer.template copy<false>(reinterpret_cast<const char*>(buffer.data()),
                                  length * int64_t{sizeof(T)});
  }
  if (kStream) writer.finish();
}

// Whole maps, each value to its cell, window by window in raster order. A plane, or a map whose few
// channels are last, is one thread's, so that nothing depends on their number; its cells become 0
// just before values come to them, while they are in the nearest cache.
template <typename T>
class PlaneScatter {
 public:
  PlaneScatter(const MaxUnpoolParams& p, bool channels_last)
      : p_(p), channels_(channels_last ? p.x.c : 1), planes_(p.x.n * p.x.c / channels_) {
    for (int64_t k = 0; k < cells_of(p.pool); ++k) {
      const Cell cell = cell_of_offset(p.pool, k);
      int64_t from = 0;
      for (int axis = 0; axis < kAxes; ++axis)
        from += cell.k[axis] * p.pool.dilation[axis] * p.x.stride[axis];
      cells_.push_back(from);
    }
  }

  int64_t planes() const { return planes_; }

  // Planes [begin, end).
  void run(int64_t begin, int64_t end) const {
    const View &x = p_.x, &y = p_.y;
    const int64_t count = x.size[0] * x.size[1] * x.size[2] * channels_;
    const int64_t windows = y.size[0] * y.size[1] * y.size[2] * channels_;
    for (int64_t plane = begin; plane < end; ++plane) {
      T* const to = reinterpret_cast<T*>(x.data) + plane * count;
      const T* from = reinterpret_cast<const T*>(y.data) + plane * windows;
      const auto* switches = reinterpret_cast<const uint8_t*>(p_.switches.data) + plane * windows;
      int64_t zeroed = 0;
      const auto zero_to = [&](int64_t reached) {
        if (reached > zeroed)
          memset(to + zeroed, 0, static_cast<size_t>(reached - zeroed) * sizeof(T));
        zeroed = std::max(zeroed, reached);
      };
      for (int64_t oz = 0; oz < y.size[0]; ++oz) {
        const int64_t z = std::min(cell_at(p_.pool, 0, oz, p_.pool.kernel[0] - 1), x.size[0] - 1);
        for (int64_t oy = 0; oy < y.size[1]; ++oy) {
          const int64_t row =
              std::min(cell_at(p_.pool, 1, oy, p_.pool.kernel[1] - 1), x.size[1] - 1);
          const int64_t reached = (z * x.size[1] + row + 1) * x.size[2] * channels_;
          if (reached > zeroed) zero_to(std::min(std::max(reached, zeroed + kAhead), count));
          T* const first = to + cell_at(p_.pool, 0, oz, 0) * x.stride[0] +
                           cell_at(p_.pool, 1, oy, 0) * x.stride[1] +
                           cell_at(p_.pool, 2, 0, 0) * x.stride[2];
          p_.set ? scatter<true>(from, switches, first) : scatter<false>(from, switches, first);
          from += y.size[2] * channels_;
          switches += y.size[2] * channels_;
        }
      }
      zero_to(count);
    }
  }

 private:
  static constexpr int64_t kAhead = 4096 / sizeof(T);

  // A row of windows, the first cell of the first of which would be at `first`.
  template <bool kSet>
  void scatter(const T* from, const uint8_t* switches, T* first) const {
    const int64_t* const cells = cells_.data();
    const int64_t step = p_.pool.stride[2] * p_.x.stride[2], channels = channels_;
    for (int64_t o = 0; o < p_.y.size[2]; ++o, first += step)
      for (int64_t c = 0; c < channels; ++c, ++from, ++switches) {
        T* const cell = first + cells[*switches] + c;
        *cell = kSet ? *from : *cell + *from;
      }
  }

  const MaxUnpoolParams& p_;
  int64_t channels_, planes_;
  std::vector<int64_t> cells_;  // elements from the first cell of a window to each of its cells
};

// A contiguous x, several planes at a time: as many as a vector has lanes. Bands of rows of the
// planes go from memory to lanes and back.
template <typename T, bool kStream>
class PlaneUnpool {
 public:
  explicit PlaneUnpool(const MaxUnpoolParams& p)
      : p_(p),
        lanes_(vector_bytes() / int64_t{sizeof(T)}),
        // Of whole maps all planes are alike.
        entries_(p.base_index ? p.x.n : 1),
        planes_(p.base_index ? p.x.c : p.x.n * p.x.c),
        groups_((planes_ + lanes_ - 1) / lanes_) {
    constexpr int64_t kBand = 64 * 1024;
    const int64_t row = p.x.size[2] * lanes_ * int64_t{sizeof(T)};
    rows_ = std::min(std::max<int64_t>(kBand / row, 1), p.x.size[1]);
    bands_ = (p.x.size[1] + rows_ - 1) / rows_;
    const int64_t reach = (p.pool.kernel[1] - 1) * p.pool.dilation[1] + rows_;
    pitch_ = std::min(reach / p.pool.stride[1] + 1, p.y.size[1]);
    switch_row_ =
        (p.base_index ? (p.y.size[2] + lanes_ - 1) / lanes_ * lanes_ : p.y.size[2]) * lanes_;
  }

  int64_t items() const { return entries_ * p_.x.size[0] * bands_ * groups_; }

  void run(int64_t begin, int64_t end) const {
    std::vector<WindowLists> lists;  // of one entry
    Scratch scratch;
    scratch.tasks.set = p_.set;
    scratch.tasks.relu = p_.relu;
    int64_t entry = -1, place = -1;
    const int64_t per_entry = p_.x.size[0] * bands_;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = divide(i, groups_), slice = divide(at, bands_);
      const int64_t b = divide(slice, p_.x.size[0]);
      Band band;
      band.b = b;
      band.c = (i - at * groups_) * lanes_;
      band.z = slice - b * p_.x.size[0];
      band.begin = (at - slice * bands_) * rows_;
      band.end = std::min(band.begin + rows_, p_.x.size[1]);
      if (entry < 0 || (b != entry && !lists.back().fit(b))) {
        const int64_t y_row = p_.y.size[2] * lanes_;
        lists.clear();
        lists.emplace_back(p_, b, std::array{pitch_ * y_row, y_row, lanes_},
                           std::array{pitch_ * switch_row_, switch_row_, lanes_}, true);
        place = -1;
      }
      if (place < 0 || at - b * per_entry != place - entry * per_entry)
        plan(band, lists.back(), scratch);
      entry = b;
      place = at;
      run(band, scratch);
    }
  }

 private:
  using Bits = Index<T>;
  static constexpr int64_t kLong = 1024;

  // Rows [begin, end) of slice z of as many planes as there are lanes, from plane c on.
  struct Band {
    int64_t b, c, z, begin, end;
  };
  struct Scratch {
    std::vector<T> y, x;
    std::vector<Bits> switches, out;
    Tasks<T, Bits> tasks;
    Cover depth;         // the slices of windows over the band,
    int64_t from, rows;  // and their rows
  };
  // What is to be done, whichever the planes.
  void plan(const Band& band, WindowLists& lists, Scratch& scratch) const {
    const View &x = p_.x, &y = p_.y;
    const auto depth = lists.cell(0, band.z);
    scratch.depth = lists.cover(0, depth.kind);
    scratch.depth.o = depth.o;
    int64_t from = INT64_MAX, to = 0;
    for (int64_t at = band.begin; at < band.end; ++at) {
      const auto cell = lists.cell(1, at);
      const Cover& height = lists.cover(1, cell.kind);
      if (height.count == 0) continue;
      from = std::min(from, cell.o);
      to = std::max(to, cell.o + (height.count - 1) * p_.pool.window_step[1] + 1);
    }
    if (to == 0) from = 0;
    scratch.from = from;
    scratch.rows = to - from;
    const int64_t y_row = y.size[2] * lanes_;
    grow(scratch.y, scratch.depth.count * pitch_ * y_row);
    grow(scratch.switches, scratch.depth.count * pitch_ * switch_row_);
    grow(scratch.x, (band.end - band.begin) * x.size[2] * lanes_);
    grow(scratch.out, (band.end - band.begin) * x.size[2] * lanes_);

    auto& tasks = scratch.tasks.list;
    tasks.clear();
    const int64_t stride = p_.pool.stride[2];
    for (int64_t at = band.begin; at < band.end; ++at) {
      const auto height = lists.cell(1, at);
      T* const cells = scratch.x.data() + (at - band.begin) * x.size[2] * lanes_;
      for (int64_t start = 0; start < std::min(stride, x.size[2]); ++start) {
        int kind = -1;
        for (int64_t i = start; i < x.size[2]; i += stride) {
          const auto width = lists.cell(2, i);
          if (width.kind == kind) {  // the next window
            ++tasks.back().cells;
            continue;
          }
          kind = width.kind;
          const std::vector<Window>& list = lists.list(depth.kind, height.kind, kind);
          Task<T, Bits> task{list.data(),        static_cast<int64_t>(list.size()),
                             scratch.y.data(),   scratch.switches.data(),
                             cells + i * lanes_, 1};
          if (!list.empty()) {
            task.y += (height.o - from) * y_row + width.o * lanes_;
            task.switches += (height.o - from) * switch_row_ + width.o * lanes_;
          }
          tasks.push_back(task);
        }
      }
    }
  }

  void run(const Band& band, Scratch& scratch) const {
    const View &x = p_.x, &y = p_.y, &v = p_.switches;
    const int64_t used = std::min(lanes_, planes_ - band.c);
    const int64_t y_slice = y.size[1] * y.size[2], v_slice = v.size[1] * v.size[2];
    const int64_t x_slice = x.size[1] * x.size[2], cells = (band.end - band.begin) * x.size[2];
    const Bits* y_planes[kMostLanes];
    Bits* x_planes[kMostLanes];
    for (int d = 0; d < scratch.depth.count && scratch.rows > 0; ++d) {
      const int64_t oz = scratch.depth.o + d * p_.pool.window_step[0];
      for (int64_t k = 0; k < lanes_; ++k)
        y_planes[k] =
            reinterpret_cast<const Bits*>(y.data) +
            ((band.b * planes_ + band.c + std::min(k, used - 1)) * y.size[0] + oz) * y_slice +
            scratch.from * y.size[2];
      planes_to_lanes(y_planes, scratch.rows * y.size[2],
                      reinterpret_cast<Bits*>(scratch.y.data()) + d * pitch_ * y.size[2] * lanes_);
      Bits* const to = scratch.switches.data() + d * pitch_ * switch_row_;
      const int64_t first = map_of(p_, band.b) * planes_ + band.c;
      const int64_t at = (oz + first_window(p_, band.b, 0)) * v_slice +
                         (scratch.from + first_window(p_, band.b, 1)) * v.size[2];
      if (!p_.base_index) {
        gather_switches(first, used, at, scratch.rows * v.size[2], to);
        continue;
      }
      // Of the columns those that y holds, and some behind them, so that vectors are full.
      const Interval held = windows_held(p_, band.b, 2);
      if (held.lo == held.hi) continue;
      const int64_t window = held.lo - first_window(p_, band.b, 2);
      const int64_t wide = switch_row_ / lanes_ - window;
      for (int64_t row = 0; row < scratch.rows; ++row) {
        const int64_t from = at + row * v.size[2] + held.lo;
        const bool fits = (first + used - 1) * v.size[0] * v_slice + from + wide <=
                          p_.switches.n * p_.switches.c * v.size[0] * v_slice;
        gather_switches(first, used, from, fits ? wide : held.hi - held.lo,
                        to + row * switch_row_ + window * lanes_);
      }
    }
    spread(scratch.tasks, p_.pool.stride[2] * lanes_);
    const int64_t plane = x.size[0] * x_slice;
    Bits* const to = reinterpret_cast<Bits*>(x.data) + (band.b * planes_ + band.c) * plane +
                     band.z * x_slice + band.begin * x.size[2];
    // Short parts, and what is to go past the caches, are gathered first.
    const bool gathered = kStream || cells * int64_t{sizeof(T)} < kLong;
    for (int64_t k = 0; k < lanes_; ++k)
      x_planes[k] = gathered ? scratch.out.data() + k * cells : to + std::min(k, used - 1) * plane;
    lanes_to_planes(reinterpret_cast<const Bits*>(scratch.x.data()), cells, x_planes, used);
    if (!gathered) return;
    if (cells == plane) return write(to, scratch.out.data(), cells * used);
    for (int64_t k = 0; k < used; ++k) write(to + k * plane, scratch.out.data() + k * cells, cells);
  }

  // `count` switches of `used` planes from plane `first` on, each from element `at` on.
  void gather_switches(int64_t first, int64_t used, int64_t at, int64_t count, Bits* to) const {
    const View& v = p_.switches;
    const uint8_t* planes[kMostLanes];
    for (int64_t k = 0; k < lanes_; ++k)
      planes[k] = reinterpret_cast<const uint8_t*>(v.data) + at +
                  (first + std::min(k, used - 1)) * v.size[0] * v.size[1] * v.size[2];
    planes_to_lanes(planes, count, to);
  }

  static void write(Bits* to, const Bits* from, int64_t count) {
    const int64_t bytes = count * int64_t{sizeof(T)};
    if (!kStream) {
      memcpy(to, from, static_cast<size_t>(bytes));
      return;
    }
    Writer<true> writer(reinterpret_cast<char*>(to));
    writer.template copy<false>(reinterpret_cast<const char*>(from), bytes);
    writer.finish();
  }

  const MaxUnpoolParams& p_;
  int64_t lanes_, entries_, planes_, groups_, rows_, bands_;
  int64_t pitch_;       // rows of windows in the scratch, of each slice
  int64_t switch_row_;  // elements of a row of switches in the scratch
};

// Any case, element by element.
template <bool kChannelsLast>
void unpool_elements(const MaxUnpoolParams& p, int64_t begin, int64_t end) {
  with_switch_type(p.switch_bytes, [&](auto s) {
    with_element(p.dtype, [&](auto t) {
      for (int64_t i = begin; i < end; ++i)
        max_unpool_element<decltype(t), decltype(s), kChannelsLast>(p, i);
    });
  });
}

// The switches of whole maps, of one byte each and windows of up to 32 cells: those of windows that
// hang over the edges must be among the bits of `valid`.
class EdgeSwitches {
 public:
  explicit EdgeSwitches(const MaxUnpoolParams& p) : p_(p) {
    const View& v = p.switches;
    const uint32_t all = static_cast<uint32_t>((uint64_t{1} << cells_of(p.pool)) - 1);
    for (int64_t z = 0; z < v.size[0]; ++z) {
      for (int64_t y = 0; y < v.size[1]; ++y) {
        for (int64_t x = 0; x < v.size[2]; ++x) {
          const int64_t o[kAxes] = {z, y, x};
          if (is_inside(o)) continue;
          const Element e{0, 0, {z, y, x}};
          uint32_t bits = 0;
          for (int64_t k = 0; k < cells_of(p.pool); ++k)
            bits |= is_right(p, e, o, k) ? uint32_t{1} << k : 0;
          edges_.push_back({(z * v.size[1] + y) * v.size[2] + x, bits});
        }
      }
    }
    const int64_t count = v.size[0] * v.size[1] * v.size[2];
    if (channels_last(v) || static_cast<int64_t>(edges_.size()) * 4 < count) return;
    table_.assign(static_cast<size_t>(count * std::max<int64_t>(512 / count, 1)), all);
    for (const Edge& edge : edges_)
      for (size_t at = static_cast<size_t>(edge.at); at < table_.size(); at += count)
        table_[at] = edge.valid;
  }

  bool none() const { return edges_.empty(); }

  // Of maps [begin, end), or of planes if channels are not last.
  bool are_right(int64_t begin, int64_t end) const {
    const View& v = p_.switches;
    const int64_t channels = channels_last(v) ? v.c : 1;
    const int64_t count = v.size[0] * v.size[1] * v.size[2] * channels;
    const auto* const from = reinterpret_cast<const uint8_t*>(v.data);
    bool right = true;
    const auto length = static_cast<int64_t>(table_.size());
    if (length > 0) {
      for (int64_t i = begin * count; i < end * count; i += length)
        right &= are_among_each(from + i, std::min(length, end * count - i), table_.data());
      return right;
    }
    for (int64_t n = begin; n < end; ++n)
      for (const Edge& edge : edges_)
        right &= are_among_same(from + n * count + edge.at * channels, channels, &edge.valid);
    return right;
  }

 private:
  struct Edge {
    int64_t at;  // a window
    uint32_t valid;
  };
  bool is_inside(const int64_t (&o)[kAxes]) const {
    for (int axis = 0; axis < kAxes; ++axis)
      if (cell_at(p_.pool, axis, o[axis], 0) < 0 ||
          cell_at(p_.pool, axis, o[axis], p_.pool.kernel[axis] - 1) >= p_.x.size[axis])
        return false;
    return true;
  }

  const MaxUnpoolParams& p_;
  std::vector<Edge> edges_;
  std::vector<uint32_t> table_;  // of the windows of one map or several, if many are edges
};

// Whether the switches of slice i of y, counted over all entries, and planes if channels are not
// last, are at most `last`.
bool are_at_most(const MaxUnpoolParams& p, int64_t i, uint8_t last) {
  const View &y = p.y, &v = p.switches;
  const bool in_pixels = channels_last(v);
  const int64_t channels = in_pixels ? v.c : 1, planes = in_pixels ? 1 : v.c;
  const int64_t plane = divide(i, y.size[0]), b = divide(plane, planes);
  const int64_t oz = i - plane * y.size[0] + first_window(p, b, 0);
  const Interval rows = windows_held(p, b, 1), columns = windows_held(p, b, 2);
  if (!contains(windows_held(p, b, 0), oz) || rows.lo == rows.hi || columns.lo == columns.hi)
    return true;
  const int64_t slice = (map_of(p, b) * planes + plane - b * planes) * v.size[0] + oz;
  return are_at_most(reinterpret_cast<const uint8_t*>(v.data) +
                         ((slice * v.size[1] + rows.lo) * v.size[2] + columns.lo) * channels,
                     rows.hi - rows.lo, v.size[2] * channels, (columns.hi - columns.lo) * channels,
                     last);
}

void look_at_switches(const MaxUnpoolParams& p, int threads, Errors& errors) {
  const int64_t count = elements_of(p.y), cells = cells_of(p.pool);
  if (p.base_index && p.switch_bytes == 1) {
    const int64_t slices = p.y.n * p.y.size[0] * (channels_last(p.switches) ? 1 : p.y.c);
    const auto last = static_cast<uint8_t>(std::min<int64_t>(cells - 1, 255));
    parallel_chunks(count == 0 ? 0 : slices, count, threads, [&](int64_t begin, int64_t end) {
      bool right = true;
      for (int64_t i = begin; i < end; ++i) right &= are_at_most(p, i, last);
      errors.found(!right);
    });
    return;
  }
  if (p.switch_bytes > 1 || cells > 32) {
    parallel_chunks(count, count * 4, threads, [&](int64_t begin, int64_t end) {
      bool right = true;
      with_switch_type(p.switch_bytes, [&](auto s) {
        using Switch = decltype(s);
        const bool last = channels_last(p.y);
        for (int64_t i = begin; i < end; ++i)
          right &=
              last ? switch_is_right<Switch, true>(p, i) : switch_is_right<Switch, false>(p, i);
      });
      errors.found(!right);
    });
    return;
  }
  parallel_chunks(count, count, threads, [&](int64_t begin, int64_t end) {
    errors.found(!are_at_most(reinterpret_cast<const uint8_t*>(p.switches.data) + begin, 1, 0,
                              end - begin, static_cast<uint8_t>(cells - 1)));
  });
  const EdgeSwitches edges(p);
  if (edges.none() || count == 0) return;
  const int64_t maps = p.switches.n * (channels_last(p.switches) ? 1 : p.switches.c);
  parallel_chunks(maps, count, threads,
                  [&](int64_t begin, int64_t end) { errors.found(!edges.are_right(begin, end)); });
}

// Whether whole maps go back window by window. 16-bit floats are added up as floats, and channels
// that fill vectors are gathered faster.
template <typename T>
bool scatters(const MaxUnpoolParams& p, bool channels_last, int threads) {
  if (sizeof(T) < 4 || p.base_index || p.relu || p.switch_bytes > 1) return false;
  if (!channels_last) return p.x.n * p.x.c >= threads;
  return p.x.c * int64_t{sizeof(T)} < 64 && p.x.n >= threads;
}

}  // namespace

void check_switches(const char* op, const MaxUnpoolParams& p, int threads) {
  check_base_index(op, p);
  Errors errors;
  look_at_switches(p, threads, errors);
  errors.report(op, p);
}

void max_unpool(const MaxUnpoolParams& p, int threads) {
  check_switches("max_unpool", p, threads);
  const int64_t count = elements_of(p.x), bytes = count * element_size(p.dtype);
  if (count == 0) return;
  with_element(p.dtype, [&](auto t) {
    using T = decltype(t);
    const bool last = channels_last(p.x) && p.y.stride_c == 1 && p.switches.stride_c == 1;
    if (scatters<T>(p, last, threads)) {
      if constexpr (sizeof(T) >= 4) {
        const PlaneScatter<T> planes(p, last);
        parallel_chunks(planes.planes(), bytes, threads,
                        [&](int64_t begin, int64_t end) { planes.run(begin, end); });
      }
    } else if (p.switch_bytes > 1 || (last && p.x.c * int64_t{sizeof(T)} < 16)) {
      parallel_chunks(count, bytes, threads, [&](int64_t begin, int64_t end) {
        last ? unpool_elements<true>(p, begin, end) : unpool_elements<false>(p, begin, end);
      });
    } else if (last) {
      const bool stream = bytes >= kStreamBytes;
      parallel_chunks(
          p.x.n * p.x.size[0] * p.x.size[1], bytes, threads, [&](int64_t begin, int64_t end) {
            stream ? unpool_pixels<T, true>(p, begin, end) : unpool_pixels<T, false>(p, begin, end);
          });
    } else {
      const auto run = [&](const auto& planes) {
        parallel_chunks(planes.items(), bytes, threads,
                        [&](int64_t begin, int64_t end) { planes.run(begin, end); });
      };
      bytes >= kStreamBytes ? run(PlaneUnpool<T, true>(p)) : run(PlaneUnpool<T, false>(p));
    }
  });
}

}  // namespace backsight::cpu

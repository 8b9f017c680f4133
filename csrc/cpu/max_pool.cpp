#include "core/max_pool.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"

namespace backsight::cpu {
namespace {

// A cell of a window, or of each of several windows side by side, that lies inside the map.
struct InsideCell {
  int64_t x, offset;  // elements from somewhere, and the offset in the window
};

// Windows side by side, which have the same cells inside the map. A vector holds channels of a
// window, or one window of several planes.
template <typename T, typename Switch>
struct Task {
  const InsideCell* cells;
  int64_t count;  // of cells
  int64_t first;  // the switch of a window in which nothing is found
  const T* x;
  T* y;
  Switch* switches;
  int64_t windows;
};
template <typename T, typename Switch>
struct Tasks {
  std::vector<Task<T, Switch>> list;
  bool relu;
};

#define BACKSIGHT_VECTOR_CODE "cpu/max_pool_lanes.h"
#include "cpu/each_isa.h"
#include "cpu/planes_dispatch.h"

// Windows of `channels` channels, at least 16 bytes of them, `step` elements apart in x.
template <typename T>
void pool(const Tasks<T, uint8_t>& tasks, int64_t channels, int64_t step) {
  BACKSIGHT_DISPATCH(std::min<int64_t>(vector_bytes(), channels * int64_t{sizeof(T)}),
                     pool(tasks, channels, step));
}
// Windows of a vector each.
template <typename T>
void pool(const Tasks<T, Index<T>>& tasks, int64_t step) {
  BACKSIGHT_DISPATCH(vector_bytes(), pool(tasks, step));
}

// The cells inside the map of all windows. Windows whose cells are the same but for their place
// share a list of them.
class CellLists {
 public:
  // Steps are elements from cell to cell of x. With numbered_slices the slices of cells of a window
  // lie slice_step apart.
  CellLists(const MaxPoolParams& p, const int64_t (&step)[kAxes], bool numbered_slices) : p_(p) {
    for (int axis = 0; axis < kAxes; ++axis) {
      const bool numbered = axis == 0 && numbered_slices;
      step_[axis] = numbered ? step[axis] : step[axis] * p.pool.dilation[axis];
      numbered_ = numbered_ || numbered;
      for (int64_t o = 0; o < p.y.size[axis]; ++o) {
        const Interval cells = cells_inside(p.pool, p.x, axis, o);
        int kind = 0;
        while (kind < kinds(axis) && !same(intervals_[axis][static_cast<size_t>(kind)], cells))
          ++kind;
        if (kind == kinds(axis)) intervals_[axis].push_back(cells);
        kind_[axis].push_back(kind);
      }
    }
    lists_.resize(static_cast<size_t>(kinds(0)) * kinds(1) * kinds(2));
  }

  int kind(int axis, int64_t o) const { return kind_[axis][static_cast<size_t>(o)]; }
  Interval interval(int axis, int kind) const {
    return intervals_[axis][static_cast<size_t>(kind)];
  }

  // The cells of windows of these kinds, counted from cell 0 of the window, or from the first
  // slice.
  const std::vector<InsideCell>& list(int depth, int height, int width) {
    auto& list = lists_[(static_cast<size_t>(depth) * kinds(1) + height) * kinds(2) + width];
    if (!list.empty()) return list;
    const Interval ds = interval(0, depth), hs = interval(1, height), ws = interval(2, width);
    for (int64_t d = ds.lo; d < ds.hi; ++d)
      for (int64_t h = hs.lo; h < hs.hi; ++h)
        for (int64_t w = ws.lo; w < ws.hi; ++w)
          list.push_back({(numbered_ ? d - ds.lo : d) * step_[0] + h * step_[1] + w * step_[2],
                          offset_of(p_.pool, d, h, w)});
    return list;
  }

  // Adds the tasks of row (oz, oy) of windows; x is where cell 0 of a window at 0 on the last axis
  // would lie, and steps are elements from window to window.
  template <typename T, typename Switch>
  void add_row(int64_t oz, int64_t oy, const T* x, int64_t x_step, T* y, Switch* switches,
               int64_t y_step, Tasks<T, Switch>& tasks) {
    const int depth = kind(0, oz), height = kind(1, oy);
    for (int64_t ox = 0; ox < p_.y.size[2];) {
      const int width = kind(2, ox);
      const int64_t begin = ox;
      while (ox < p_.y.size[2] && kind(2, ox) == width) ++ox;
      const std::vector<InsideCell>& cells = list(depth, height, width);
      tasks.list.push_back({cells.data(), static_cast<int64_t>(cells.size()), cells[0].offset,
                            x + begin * x_step, y + begin * y_step, switches + begin * y_step,
                            ox - begin});
    }
  }

 private:
  int kinds(int axis) const { return static_cast<int>(intervals_[axis].size()); }
  static bool same(Interval a, Interval b) { return a.lo == b.lo && a.hi == b.hi; }

  const MaxPoolParams& p_;
  bool numbered_ = false;
  int64_t step_[kAxes];
  std::vector<Interval> intervals_[kAxes];      // of each kind
  std::vector<int> kind_[kAxes];                // of each window
  std::vector<std::vector<InsideCell>> lists_;  // of each combination of kinds
};

// Rows [begin, end) of an output whose channels are last.
template <typename T>
void pool_pixels(const MaxPoolParams& p, int64_t begin, int64_t end) {
  const View &x = p.x, &y = p.y;
  CellLists lists(p, x.stride, false);
  Tasks<T, uint8_t> tasks{{}, p.relu};
  const int64_t length = y.size[2] * y.c, step = p.pool.stride[2] * x.stride[2];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t slice = divide(i, y.size[1]), oy = i - slice * y.size[1];
    const int64_t n = divide(slice, y.size[0]), oz = slice - n * y.size[0];
    const int64_t from = n * x.stride_n + cell_at(p.pool, 0, oz, 0) * x.stride[0] +
                         cell_at(p.pool, 1, oy, 0) * x.stride[1] +
                         cell_at(p.pool, 2, 0, 0) * x.stride[2];
    tasks.list.clear();
    lists.add_row(oz, oy, reinterpret_cast<const T*>(x.data) + from, step,
                  reinterpret_cast<T*>(y.data) + i * length,
                  reinterpret_cast<uint8_t*>(p.switches.data) + i * length, y.c, tasks);
    pool(tasks, y.c, step);
  }
}

// Contiguous arrays, several planes at a time: as many as a vector has lanes. Bands of rows of the
// planes go from memory to lanes and back.
template <typename T>
class PlanePool {
 public:
  explicit PlanePool(const MaxPoolParams& p)
      : p_(p),
        lanes_(vector_bytes() / int64_t{sizeof(T)}),
        planes_(p.y.n * p.y.c),
        groups_((planes_ + lanes_ - 1) / lanes_) {
    constexpr int64_t kBand = 128 * 1024;
    const int64_t rows_in = kBand / (p.x.size[2] * lanes_ * int64_t{sizeof(T)});
    const int64_t span = (p.pool.kernel[1] - 1) * p.pool.dilation[1] + 1;
    rows_ = std::min(std::max<int64_t>((rows_in - span) / p.pool.stride[1] + 1, 1), p.y.size[1]);
    bands_ = (p.y.size[1] + rows_ - 1) / rows_;
    pitch_ = std::min((rows_ - 1) * p.pool.stride[1] + span, p.x.size[1]);
  }

  int64_t items() const { return p_.y.size[0] * bands_ * groups_; }

  void run(int64_t begin, int64_t end) const {
    const int64_t row = p_.x.size[2] * lanes_;
    CellLists lists(p_, {pitch_ * row, row, lanes_}, true);
    Scratch scratch;
    scratch.tasks.relu = p_.relu;
    int64_t place = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = divide(i, groups_), oz = divide(at, bands_);
      const int64_t first = (at - oz * bands_) * rows_;
      const Band band{(i - at * groups_) * lanes_, oz, first,
                      std::min(first + rows_, p_.y.size[1])};
      if (at != place) plan(band, lists, scratch);
      place = at;
      run(band, scratch);
    }
  }

 private:
  using Bits = Index<T>;

  // Rows [begin, end) of slice oz of as many planes as there are lanes, from plane c on.
  struct Band {
    int64_t c, oz, begin, end;
  };
  struct Scratch {
    std::vector<T> x, y;
    std::vector<Bits> switches;
    Tasks<T, Bits> tasks;
    Interval depth, rows;  // the slices of the band's windows, as cells, and their rows
  };

  // What is to be done, whichever the planes.
  void plan(const Band& band, CellLists& lists, Scratch& scratch) const {
    const View &x = p_.x, &y = p_.y;
    const int64_t row = x.size[2] * lanes_, out_row = y.size[2] * lanes_;
    scratch.depth = lists.interval(0, lists.kind(0, band.oz));
    scratch.rows = {INT64_MAX, 0};
    for (int64_t oy = band.begin; oy < band.end; ++oy) {
      const Interval height = lists.interval(1, lists.kind(1, oy));
      scratch.rows.lo = std::min(scratch.rows.lo, cell_at(p_.pool, 1, oy, height.lo));
      scratch.rows.hi = std::max(scratch.rows.hi, cell_at(p_.pool, 1, oy, height.hi - 1) + 1);
    }
    grow(scratch.x, (scratch.depth.hi - scratch.depth.lo) * pitch_ * row);
    grow(scratch.y, (band.end - band.begin) * out_row);
    grow(scratch.switches, (band.end - band.begin) * out_row);
    scratch.tasks.list.clear();
    for (int64_t oy = band.begin; oy < band.end; ++oy) {
      const int64_t from =
          (cell_at(p_.pool, 1, oy, 0) - scratch.rows.lo) * row + cell_at(p_.pool, 2, 0, 0) * lanes_;
      const int64_t to = (oy - band.begin) * out_row;
      lists.add_row(band.oz, oy, static_cast<const T*>(scratch.x.data()) + from,
                    p_.pool.stride[2] * lanes_, scratch.y.data() + to, scratch.switches.data() + to,
                    lanes_, scratch.tasks);
    }
  }

  void run(const Band& band, Scratch& scratch) const {
    const View &x = p_.x, &y = p_.y;
    const int64_t used = std::min(lanes_, planes_ - band.c);
    const int64_t x_slice = x.size[1] * x.size[2], y_slice = y.size[1] * y.size[2];
    const int64_t rows = scratch.rows.hi - scratch.rows.lo;
    const Bits* x_planes[kMostLanes];
    Bits* y_planes[kMostLanes];
    uint8_t* switch_planes[kMostLanes];
    for (int64_t kd = scratch.depth.lo; kd < scratch.depth.hi; ++kd) {
      const int64_t from = cell_at(p_.pool, 0, band.oz, kd) * x_slice + scratch.rows.lo * x.size[2];
      for (int64_t k = 0; k < lanes_; ++k)
        x_planes[k] = reinterpret_cast<const Bits*>(x.data) +
                      (band.c + std::min(k, used - 1)) * x.size[0] * x_slice + from;
      planes_to_lanes(x_planes, rows * x.size[2],
                      reinterpret_cast<Bits*>(scratch.x.data()) +
                          (kd - scratch.depth.lo) * pitch_ * x.size[2] * lanes_);
    }
    pool(scratch.tasks, p_.pool.stride[2] * lanes_);
    for (int64_t k = 0; k < lanes_; ++k) {
      const int64_t to = ((band.c + std::min(k, used - 1)) * y.size[0] + band.oz) * y_slice +
                         band.begin * y.size[2];
      y_planes[k] = reinterpret_cast<Bits*>(y.data) + to;
      switch_planes[k] = reinterpret_cast<uint8_t*>(p_.switches.data) + to;
    }
    const int64_t count = (band.end - band.begin) * y.size[2];
    lanes_to_planes(reinterpret_cast<const Bits*>(scratch.y.data()), count, y_planes, used);
    lanes_to_planes(static_cast<const Bits*>(scratch.switches.data()), count, switch_planes, used);
  }

  const MaxPoolParams& p_;
  int64_t lanes_, planes_, groups_, rows_, bands_;
  int64_t pitch_;  // rows of x in the scratch, of each slice
};

// Any case, element by element.
template <bool kChannelsLast>
void pool_elements(const MaxPoolParams& p, int64_t begin, int64_t end) {
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      for (int64_t i = begin; i < end; ++i)
        max_pool_element<decltype(t), decltype(s), kChannelsLast>(p, i);
    });
  });
}

}  // namespace

void max_pool(const MaxPoolParams& p, int threads) {
  const int64_t count = elements_of(p.y);
  if (count == 0) return;
  const int64_t bytes = elements_of(p.x) * element_size(p.dtype);
  const bool last = channels_last(p.y) && p.x.stride_c == 1;
  with_element(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.switch_bytes > 1 || (last && p.y.c * int64_t{sizeof(T)} < 16)) {
      parallel_chunks(count, bytes, threads, [&](int64_t begin, int64_t end) {
        last ? pool_elements<true>(p, begin, end) : pool_elements<false>(p, begin, end);
      });
    } else if (last) {
      parallel_chunks(count / (p.y.c * p.y.size[2]), bytes, threads,
                      [&](int64_t begin, int64_t end) { pool_pixels<T>(p, begin, end); });
    } else {
      const PlanePool<T> planes(p);
      parallel_chunks(planes.items(), bytes, threads,
                      [&](int64_t begin, int64_t end) { planes.run(begin, end); });
    }
  });
}

}  // namespace backsight::cpu

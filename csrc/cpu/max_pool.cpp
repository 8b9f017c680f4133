#include "core/max_pool.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool_rows.h"

namespace backsight::cpu {
namespace {

// The cells of a window, or of windows side by side, that lie inside the map.
struct InsideCells {
  int64_t count;
  int64_t from[kByteOffsets];  // in elements, from somewhere
  uint8_t offset[kByteOffsets];

  void add(int64_t at, int64_t k) {
    from[count] = at;
    offset[count++] = static_cast<uint8_t>(k);
  }
};

// Windows whose cells lie next to each other in memory.
template <typename T>
struct Windows {
  const InsideCells* cells;
  const T* from;
  bool relu;
  int64_t start;          // the switch of a window in which nothing is found,
  const Index<T>* first;  // and what each window adds to it; may be null
};

#define BACKSIGHT_VECTOR_CODE "cpu/max_pool_lanes.h"
#include "cpu/each_isa.h"

// `count` windows, at least 16 bytes of them.
template <typename T>
void pool(const Windows<T>& w, int64_t count, T* y, uint8_t* switches) {
#if BACKSIGHT_HAS_TARGETS
  const int64_t bytes = std::min<int64_t>(vector_bytes(), count * int64_t{sizeof(T)});
  if (bytes >= 64) return vectors64::pool(w, count, y, switches);
  if (bytes >= 32) return vectors32::pool(w, count, y, switches);
#endif
  vectors16::pool(w, count, y, switches);
}

// even[i] = from[2 * i] and odd[i] = from[2 * i + 1].
template <typename T>
void unzip(T* even, T* odd, const T* from, int64_t count) {
  const int64_t bytes = count * int64_t{sizeof(T)};
  if (bytes < 32) {
    for (int64_t i = 0; i < count; ++i) {
      even[i] = from[2 * i];
      odd[i] = from[2 * i + 1];
    }
    return;
  }
#if BACKSIGHT_HAS_TARGETS
  if (std::min<int64_t>(vector_bytes(), bytes) >= 64)
    return vectors64::unzip(even, odd, from, count);
  if (vector_bytes() >= 32) return vectors32::unzip(even, odd, from, count);
#endif
  vectors16::unzip(even, odd, from, count);
}

// Rows [begin, end) of an output whose channels are last; a vector holds channels.
template <typename T>
void pool_pixels(const MaxPoolParams& p, int64_t begin, int64_t end) {
  const View &x = p.x, &y = p.y;
  std::vector<Interval> widths;
  for (int64_t ox = 0; ox < y.size[2]; ++ox) widths.push_back(cells_inside(p.pool, x, 2, ox));
  InsideCells cells;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t slice = divide(i, y.size[1]), oy = i - slice * y.size[1];
    const int64_t n = divide(slice, y.size[0]), oz = slice - n * y.size[0];
    const Interval depth = cells_inside(p.pool, x, 0, oz);
    const Interval height = cells_inside(p.pool, x, 1, oy);
    const T* const image = reinterpret_cast<const T*>(x.data) + n * x.stride_n;
    T* maxima = reinterpret_cast<T*>(y.data) + i * y.size[2] * y.c;
    uint8_t* switches = reinterpret_cast<uint8_t*>(p.switches.data) + i * y.size[2] * y.c;
    Interval before{0, 0};
    for (int64_t ox = 0; ox < y.size[2]; ++ox, maxima += y.c, switches += y.c) {
      const Interval width = widths[static_cast<size_t>(ox)];
      if (width.lo != before.lo || width.hi != before.hi) {  // the same cells, seen from the window
        before = width;
        cells.count = 0;
        for (int64_t kd = depth.lo; kd < depth.hi; ++kd)
          for (int64_t kh = height.lo; kh < height.hi; ++kh)
            for (int64_t kw = width.lo; kw < width.hi; ++kw)
              cells.add(cell_at(p.pool, 0, oz, kd) * x.stride[0] +
                            cell_at(p.pool, 1, oy, kh) * x.stride[1] +
                            cell_at(p.pool, 2, 0, kw) * x.stride[2],
                        offset_of(p.pool, kd, kh, kw));
      }
      const Windows<T> windows{&cells, image + ox * p.pool.stride[2] * x.stride[2], p.relu,
                               offset_of(p.pool, depth.lo, height.lo, width.lo), nullptr};
      pool(windows, y.c, maxima, switches);
    }
  }
}

// Rows of a contiguous output; a vector holds neighbours along the row, and of several planes if
// rows are short. Each row of x is read once into phases: phase f holds the padded row's cells
// f, f + stride, f + 2 * stride, ..., so that cell k of neighbouring windows lies next to each
// other.
template <typename T>
class RowPool {
 public:
  explicit RowPool(const MaxPoolParams& p)
      : p_(p),
        phases_(p.pool, 2),
        lanes_(p.y.size[2] + phases_.most_shift),
        planes_(planes_together(lanes_, p.y.c)),
        // A lone row needs no lanes between planes.
        count_(planes_ > 1 ? planes_ * lanes_ : p.y.size[2]),
        padded_(round_up(count_, 32) + phases_.most_shift + 32),
        slots_depth_(slots(0)),
        slots_height_(slots(1)) {
    for (int64_t f = 0; f < phases_.used; ++f) parts_.push_back(part(f));
    if (phases_.used != 2 || p.pool.stride[2] != 2) return;
    first_ = parts_[0].cell < parts_[1].cell ? 0 : 1;
    if (parts_[first_].cell + 1 == parts_[1 - first_].cell)
      pairs_ = std::min(parts_[0].hi - parts_[0].lo, parts_[1].hi - parts_[1].lo);
  }

  int64_t items() const { return p_.y.n * groups() * p_.y.size[0] * p_.y.size[1]; }

  void run(int64_t begin, int64_t end) const {
    // InsideCells in the padding are -inf, which is never a new maximum.
    T low;
    store(-static_cast<Widened<T>>(__builtin_inf()), &low);
    const int64_t slot_size = phases_.used * padded_;
    std::vector<T> scratch(static_cast<size_t>(slots_depth_ * slots_height_ * slot_size), low);
    std::vector<int64_t> tags(static_cast<size_t>(slots_depth_ * slots_height_), -1);
    std::vector<Index<T>> first(static_cast<size_t>(padded_));
    for (int64_t i = 0; i < count_; ++i)
      first[i] = static_cast<Index<T>>(
          cells_inside(p_.pool, p_.x, 2, std::min(i % lanes_, p_.y.size[2] - 1)).lo);
    std::vector<T> maxima(static_cast<size_t>(padded_));
    std::vector<uint8_t> offsets(static_cast<size_t>(padded_));
    InsideCells cells;
    const int64_t width = p_.y.size[2];

    for (int64_t i = begin; i < end; ++i) {
      int64_t rest = divide(i, p_.y.size[1]);
      const int64_t oy = i - rest * p_.y.size[1];
      const int64_t group = divide(rest, p_.y.size[0]), oz = rest - group * p_.y.size[0];
      const int64_t n = divide(group, groups()), c = (group - n * groups()) * planes_;
      const int64_t planes = std::min(planes_, p_.y.c - c);
      const Interval depth = cells_inside(p_.pool, p_.x, 0, oz);
      const Interval height = cells_inside(p_.pool, p_.x, 1, oy);
      cells.count = 0;
      for (int64_t kd = depth.lo; kd < depth.hi; ++kd) {
        for (int64_t kh = height.lo; kh < height.hi; ++kh) {
          const int64_t z = cell_at(p_.pool, 0, oz, kd), y = cell_at(p_.pool, 1, oy, kh);
          const int64_t slot = z % slots_depth_ * slots_height_ + y % slots_height_;
          const int64_t tag = (group * p_.x.size[0] + z) * p_.x.size[1] + y;
          if (tags[slot] != tag) {
            tags[slot] = tag;
            read(scratch.data() + slot * slot_size, n, c, planes, z, y);
          }
          for (int64_t kw = 0; kw < p_.pool.kernel[2]; ++kw)
            cells.add(slot * slot_size + phases_.of[kw] * padded_ + phases_.shift[kw],
                      offset_of(p_.pool, kd, kh, kw));
        }
      }
      const Windows<T> windows{&cells, scratch.data(), p_.relu,
                               offset_of(p_.pool, depth.lo, height.lo, 0), first.data()};
      const int64_t at = ((n * p_.y.c + c) * p_.y.size[0] + oz) * p_.y.size[1] + oy;
      T* y = reinterpret_cast<T*>(p_.y.data) + at * width;
      uint8_t* switches = reinterpret_cast<uint8_t*>(p_.switches.data) + at * width;
      if (planes_ == 1 && width >= kLeast) {
        pool(windows, width, y, switches);
        continue;
      }
      pool(windows, round_up(count_, kLeast), maxima.data(), offsets.data());
      const int64_t step = p_.y.size[0] * p_.y.size[1] * width;
      for (int64_t k = 0; k < planes; ++k) {
        copy_bytes(y + k * step, maxima.data() + k * lanes_, width * int64_t{sizeof(T)});
        copy_bytes(switches + k * step, offsets.data() + k * lanes_, width);
      }
    }
  }

 private:
  static constexpr int64_t kLeast = 16 / sizeof(T);
  int64_t groups() const { return (p_.y.c + planes_ - 1) / planes_; }
  // How many of a window's cells along an axis are kept at a time.
  int64_t slots(int axis) const {
    return std::min((p_.pool.kernel[axis] - 1) * p_.pool.dilation[axis] + 1, p_.x.size[axis]);
  }

  // The part of a phase that is not padding: lanes, and the cell of the first.
  struct Part {
    int64_t lo, hi, cell;
  };
  Part part(int64_t f) const {
    const int64_t stride = p_.pool.stride[2];
    const int64_t ahead = p_.pool.padding[2] - phases_.phase[f];  // lane j: cell j * stride - ahead
    const int64_t lo = ahead > 0 ? (ahead + stride - 1) / stride : 0;
    const int64_t hi = std::min(lanes_, floor_divide(p_.x.size[2] - 1 + ahead, stride) + 1);
    return {lo, std::max(lo, hi), lo * stride - ahead};
  }

  void read(T* row, int64_t n, int64_t c, int64_t planes, int64_t z, int64_t y) const {
    const int64_t step = p_.x.stride[2];
    const T* from = reinterpret_cast<const T*>(p_.x.data) + row_offset(p_.x, n, c, z, y);
    for (int64_t k = 0; k < planes; ++k, from += p_.x.stride_c, row += lanes_) {
      int64_t done = 0;  // lanes of either phase
      if (pairs_ > 0 && step == 1) {
        unzip(row + first_ * padded_ + parts_[first_].lo,
              row + (1 - first_) * padded_ + parts_[1 - first_].lo, from + parts_[first_].cell,
              pairs_);
        done = pairs_;
      }
      for (int64_t f = 0; f < phases_.used; ++f) {
        const Part& part = parts_[f];
        if (part.lo + done >= part.hi) continue;
        const int64_t stride = p_.pool.stride[2] * step;
        copy_strided(row + f * padded_ + part.lo + done, from + part.cell * step + done * stride,
                     part.hi - part.lo - done, stride);
      }
    }
  }

  const MaxPoolParams& p_;
  Phases phases_;
  std::vector<Part> parts_;  // of each phase
  // With a stride of 2, the first pairs_ lanes of the two phases alternate in x, this one first.
  int64_t first_ = 0, pairs_ = 0;
  int64_t lanes_, planes_, count_, padded_, slots_depth_, slots_height_;
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
      const RowPool<T> rows(p);
      parallel_chunks(rows.items(), bytes, threads,
                      [&](int64_t begin, int64_t end) { rows.run(begin, end); });
    }
  });
}

}  // namespace backsight::cpu

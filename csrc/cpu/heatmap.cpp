#include "core/heatmap.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

using namespace heatmap;

constexpr int64_t kRowBytes = 8192;  // rows of the output are built in pieces of at most this
constexpr int64_t kManyBoxes = 1 << 14;

// Rows are built in steps of 32 bytes and may be overrun by one.
template <typename T>
constexpr int64_t kStep = 32 / sizeof(T);

// Uninitialised memory, aligned to cache lines.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t n)
      : data_(static_cast<T*>(::operator new(sizeof(T) * static_cast<size_t>(n), kAlign))) {}
  ~Buffer() { ::operator delete(data_, kAlign); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  T* data_;
};

// The boxes cut into cells; shared by all outputs.
struct Grid {
  std::vector<int64_t> edges[kAxes];    // segment s of an axis is [edges[s], edges[s + 1])
  std::vector<int32_t> segment[kAxes];  // of every coordinate
  int64_t cells[kAxes];
  int64_t total = 1;                         // cells
  int half;                                  // corners of each sign
  std::unique_ptr<Buffer<int64_t>> corners;  // (boxes, 2 * half) cells, or -1; the added ones first
  std::unique_ptr<Buffer<double>> count;     // boxes over each cell, at least 1
  int width;                                 // of the digits
};

// One thread of a team that shares the work on one set of sums.
struct Member {
  int index, team;

  int64_t begin(int64_t n) const { return n / team * index + n % team * index / team; }
  int64_t end(int64_t n) const { return n / team * (index + 1) + n % team * (index + 1) / team; }
  void wait() const {
    if (team == 1) return;
#pragma omp barrier
  }
};

// Runs work(Member) on `threads` threads, or fewer where the machine gives fewer.
template <typename Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1) return work(Member{0, 1});
#pragma omp parallel num_threads(threads)
  work(Member{omp_get_thread_num(), omp_get_num_threads()});
}

// Where edges lie on each axis; threads may mark at the same time.
using Marks = std::array<std::vector<char>, kAxes>;

template <int kDims>
void mark_edges(const HeatmapParams& p, int64_t begin, int64_t end, Marks& marks) {
  for (int64_t n = begin; n < end; ++n) {
    int64_t lo[kAxes], hi[kAxes];
    if (!clip_box<kDims>(p, n, lo, hi)) continue;
    for (size_t axis = kAxes - kDims; axis < kAxes; ++axis) {
      __atomic_store_n(&marks[axis][static_cast<size_t>(lo[axis])], 1, __ATOMIC_RELAXED);
      __atomic_store_n(&marks[axis][static_cast<size_t>(hi[axis])], 1, __ATOMIC_RELAXED);
    }
  }
}

// A grid without its corners and counts.
Grid make_grid(const HeatmapParams& p, const Marks& marks) {
  Grid grid;
  for (size_t axis = 0; axis < kAxes; ++axis) {
    grid.segment[axis].resize(marks[axis].size());
    int32_t segment = -1;
    for (size_t i = 0; i < marks[axis].size(); ++i) {
      if (marks[axis][i] != 0) {
        grid.edges[axis].push_back(static_cast<int64_t>(i));
        ++segment;
      }
      grid.segment[axis][i] = segment;
    }
    grid.cells[axis] = segment;
    grid.total *= segment;
  }
  grid.half = 1 << (p.dims - 1);
  return grid;
}

template <int kDims>
void place_corners(const HeatmapParams& p, int64_t begin, int64_t end, const Grid& grid) {
  constexpr int kCorners = 1 << kDims;
  for (int64_t n = begin; n < end; ++n) {
    int64_t* added = grid.corners->get() + n * kCorners;
    int64_t* taken = added + kCorners / 2;
    int64_t lo[kAxes], hi[kAxes];
    if (!clip_box<kDims>(p, n, lo, hi)) {
      std::fill(added, added + kCorners, int64_t{-1});
      continue;
    }
    for (int axis = kAxes - kDims; axis < kAxes; ++axis) {
      lo[axis] = grid.segment[axis][static_cast<size_t>(lo[axis])];
      hi[axis] = grid.segment[axis][static_cast<size_t>(hi[axis])];
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCorners; ++i) {
      const int corner = i << (kAxes - kDims);
      *(corner_is_negative(corner) ? taken : added)++ = corner_index(corner, lo, hi, grid.cells);
    }
  }
}

// Calls run(dims) with the number of axes as a constant.
template <typename Run>
void with_dims(int dims, const Run& run) {
  if (dims == 1) return run(std::integral_constant<int, 1>{});
  if (dims == 2) return run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 3>{});
}

// kLanes numbers of one cell, of as many outputs; GCC turns arithmetic on them into SIMD.
template <typename T, int kLanes>
struct LanesOf {
  typedef T Type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <typename T>
struct LanesOf<T, 1> {
  using Type = T;
};
template <typename T, int kLanes>
using Lanes = typename LanesOf<T, kLanes>::Type;

template <typename V>
HD auto& lane_of(V& x, int lane) {
  if constexpr (std::is_arithmetic_v<V>) {
    return x;
  } else {
    return x[lane];
  }
}

// Sums over all boxes, for kLanes outputs at once: calls emit(cell, sum) for every cell of this
// member. digits(n, &value) gives what box n adds. `sums` is scratch of one sum a cell, shared by
// the team; waits for the team before it returns.
template <typename Sum, typename Digits, typename Emit>
HD void sum_boxes(const Grid& grid, Member member, Sum* sums, int64_t boxes, const Digits& digits,
                  const Emit& emit) {
  const int64_t width = grid.cells[2], height = grid.cells[1], depth = grid.cells[0];
  // Every member takes some rows of cells, zeroes them, and picks from all boxes what falls there.
  const int64_t first = member.begin(depth * height) * width;
  const int64_t mine = member.end(depth * height) * width - first;
  Sum* const own = sums + first;
  memset(static_cast<void*>(own), 0, static_cast<size_t>(mine) * sizeof(Sum));
  const int half = grid.half;
  const int64_t* corner = grid.corners->get();
  for (int64_t n = 0; n < boxes && mine > 0; ++n, corner += 2 * half) {
    Sum value{};
    digits(n, &value);
    for (int i = 0; i < half; ++i) {
      const int64_t added = corner[i] - first, taken = corner[half + i] - first;
      if (static_cast<uint64_t>(added) < static_cast<uint64_t>(mine)) own[added] += value;
      if (static_cast<uint64_t>(taken) < static_cast<uint64_t>(mine)) own[taken] -= value;
    }
  }
  for (int64_t row = 0; row < mine; row += width) {
    Sum sum{};
    for (int64_t x = row; x < row + width; ++x) own[x] = sum += own[x];
  }
  member.wait();
  // Then along the other axes; every member takes some columns.
  int64_t steps = height, columns = width;
  if (depth > 1) {
    for (int64_t z = 0; z < depth; ++z) {
      for (int64_t y = 1; y < height; ++y) {
        Sum* row = sums + (z * height + y) * width;
        for (int64_t x = member.begin(width); x < member.end(width); ++x) row[x] += row[x - width];
      }
    }
    member.wait();
    steps = depth;
    columns = height * width;
  }
  const int64_t begin = member.begin(columns), end = member.end(columns);
  for (int64_t step = 0; step < steps; ++step) {
    Sum* row = sums + step * columns;
    for (int64_t x = begin; x < end; ++x) {
      if (step > 0) row[x] += row[x - columns];
      emit(step * columns + x, row[x]);
    }
  }
  member.wait();
}

BACKSIGHT_CLONES void count_boxes(const Grid& grid, Member member, uint64_t* sums, int64_t boxes,
                                  double* count, int64_t* most) {
  int64_t largest = 0;
  sum_boxes(
      grid, member, sums, boxes, [](int64_t, uint64_t* value) { *value = 1; },
      [&](int64_t cell, uint64_t sum) {
        const int64_t boxes_here = static_cast<int64_t>(sum);
        largest = std::max(largest, boxes_here);
        count[cell] = static_cast<double>(std::max(boxes_here, int64_t{1}));
      });
  *most = largest;
}

// The scratch of one team for kLanes outputs.
template <typename T, int kLanes>
struct Scratch {
  explicit Scratch(int64_t cells)
      : sums(cells), values(cells * kLanes + kStep<T>), state(cells * kLanes) {}
  Buffer<Lanes<uint64_t, kLanes>> sums;  // (cells,)
  Buffer<T> values;                      // (kLanes, cells), and room for one step
  Buffer<Wide> state;                    // (cells, kLanes), touched where one level is not enough
};

template <typename T>
HD void load_lanes(const T* from, T* to) {
  *to = *from;
}
HD void load_lanes(const Half* from, float* to) { *to = to_float(*from); }
HD void load_lanes(const BFloat16* from, float* to) { *to = to_float(*from); }
HD void load_lanes(const double* from, Lanes<double, 4>* to) { memcpy(to, from, sizeof(*to)); }
HD void load_lanes(const float* from, Lanes<float, 4>* to) { memcpy(to, from, sizeof(*to)); }
HD void load_lanes(const BFloat16* from, Lanes<float, 4>* to) {
  Lanes<uint16_t, 4> bits;
  memcpy(&bits, from, sizeof(bits));
  using U = Lanes<uint32_t, 4>;
  *to = reinterpret_cast<Lanes<float, 4>>(__builtin_convertvector(bits, U) << 16);
}
HD void load_lanes(const Half* from, Lanes<float, 4>* to) {
  for (int lane = 0; lane < 4; ++lane) (*to)[lane] = to_float(from[lane]);
}

// digit() and finish() of core/heatmap.h, on four outputs at once.
HD void digits(const Lanes<float, 4>& scores, const Lanes<uint64_t, 4>& lowest,
               Lanes<uint64_t, 4>* value) {
  using V = Lanes<uint64_t, 4>;
  const V bits = __builtin_convertvector(reinterpret_cast<Lanes<uint32_t, 4>>(scores), V);
  const V field = (bits >> 23) & 255;
  const V subnormal = reinterpret_cast<V>(field == 0);  // all ones where true
  const V mantissa = (bits & 0x7fffff) | (~subnormal & 0x800000);
  const V sign = 0 - (bits >> 31);
  const V magnitude = mantissa << ((field - subnormal - lowest) & 63);
  *value = (magnitude ^ sign) - sign;
}

HD void finish_lanes(const Lanes<uint64_t, 4>& sum, double count, const Lanes<double, 4>& unit,
                     Lanes<float, 4>* result) {
  using D = Lanes<double, 4>;
  const D high = reinterpret_cast<D>((sum >> 32) ^ 0x4530000080000000u);
  const D low = reinterpret_cast<D>((sum & 0xffffffffu) | 0x4330000000000000u);
  const D value = ((high - (0x1p84 + 0x1p63 + 0x1p52)) + low) / count * unit;
  *result = __builtin_convertvector(value, Lanes<float, 4>);
}

// The scores of each box, for outputs [k, k + lanes) of kLanes; 0 beyond.
template <typename T, int kLanes>
struct Scores {
  using Float = decltype(widen(T{}));
  const T* first;
  int64_t stride;
  int lanes;

  HD void load(int64_t n, Lanes<Float, kLanes>* x) const {
    const T* from = first + n * stride;
    if (lanes == kLanes) return load_lanes(from, x);
    for (int lane = 0; lane < kLanes; ++lane)
      lane_of(*x, lane) = lane < lanes ? widen(from[lane]) : 0;
  }
};

template <typename T, int kLanes>
HD void find_scales(const Scores<T, kLanes>& scores, int64_t boxes, int width, Scale* scales) {
  using Float = decltype(widen(T{}));
  using Bits = typename Format<Float>::Bits;
  using V = Lanes<Bits, kLanes>;
  constexpr Bits kInfinity = Bits{Format<Float>::kSpecial} << Format<Float>::kMantissa;
  V inverse{}, largest{}, bad{};  // as in core/heatmap_phases.h: all zero before the first score
  for (int64_t n = 0; n < boxes; ++n) {
    Lanes<Float, kLanes> x;
    scores.load(n, &x);
    V m;
    memcpy(&m, &x, sizeof(m));
    m &= ~Bits{0} >> 1;
    const V finite = m < kInfinity ? m : V{};
    const V inverted = finite != 0 ? ~finite : V{};
    bad |= m ^ finite;
    largest = largest < finite ? finite : largest;
    inverse = inverse < inverted ? inverted : inverse;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    scales[lane] = make_scale<Float>(~lane_of(inverse, lane), lane_of(largest, lane),
                                     lane_of(bad, lane) != 0, width);
  }
}

// The values of outputs [k, k + lanes) at every cell.
template <typename T, int kLanes>
HD void compute_cells(const HeatmapParams& p, const Grid& grid, int64_t k, int lanes, Member member,
                      const Scratch<T, kLanes>& scratch) {
  using Float = decltype(widen(T{}));
  using Sum = Lanes<uint64_t, kLanes>;
  constexpr bool kDouble = sizeof(Float) == 8;  // doubles always go by way of Wide
  Sum* const sums = scratch.sums.get();
  T* const values = scratch.values.get();
  const double* const count = p.mean ? grid.count->get() : nullptr;
  const int64_t total = grid.total;
  const Scores<T, kLanes> scores{reinterpret_cast<const T*>(p.scores) + k, p.k, lanes};
  Scale scales[kLanes];
  find_scales(scores, p.n, grid.width, scales);
  Sum lowest;
  Lanes<double, kLanes> unit;
  int levels = 1;
  bool bad = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Scale scale = scales[lane];
    lane_of(lowest, lane) = static_cast<uint64_t>(scale.lowest);
    lane_of(unit, lane) = kDouble ? 0 : power_of_two(unit_of<Float>(scale));
    levels = std::max(levels, scale.levels);
    bad = bad || scale.bad;
  }

  if constexpr (!kDouble) {
    if (levels == 1 && !bad) {
      sum_boxes(
          grid, member, sums, p.n,
          [&](int64_t n, Sum* value) {
            Lanes<Float, kLanes> x;
            scores.load(n, &x);
            if constexpr (kLanes == 1) {
              *value = digit(x, static_cast<int>(lowest));
            } else {
              digits(x, lowest, value);
            }
          },
          [&](int64_t cell, const Sum& sum) {
            const double divisor = count == nullptr ? 1 : count[cell];
            if constexpr (kLanes == 1) {
              narrow(finish(sum, divisor, unit), values + cell);
            } else {
              Lanes<float, kLanes> result;
              finish_lanes(sum, divisor, unit, &result);
              for (int lane = 0; lane < kLanes; ++lane)
                store(result[lane], values + lane * total + cell);
            }
          });
      return;
    }
  }

  Wide* const state = scratch.state.get();
  for (int level = levels - 1; level >= 0; --level) {
    sum_boxes(
        grid, member, sums, p.n,
        [&](int64_t n, Sum* value) {
          Lanes<Float, kLanes> x;
          scores.load(n, &x);
          for (int lane = 0; lane < kLanes; ++lane) {
            lane_of(*value, lane) =
                digit(lane_of(x, lane), static_cast<int>(lane_of(lowest, lane)), grid.width, level);
          }
        },
        [&](int64_t cell, const Sum& sum) {
          const double divisor = count == nullptr ? 1 : count[cell];
          for (int lane = 0; lane < kLanes; ++lane) {
            Wide& wide = state[cell * kLanes + lane];
            if (level == levels - 1) wide = Wide{};
            add_level(&wide, lane_of(sum, lane), grid.width, level);
            if (level > 0) continue;
            const int e = static_cast<int>(lane_of(lowest, lane)) - Format<Float>::kBias;
            narrow(finish(wide, divisor, e, grid.width), values + lane * total + cell);
          }
        });
  }
  if (!bad) return;
  sum_boxes(
      grid, member, sums, p.n,
      [&](int64_t n, Sum* value) {
        Lanes<Float, kLanes> x;
        scores.load(n, &x);
        for (int lane = 0; lane < kLanes; ++lane)
          lane_of(*value, lane) = is_finite(lane_of(x, lane)) ? 0 : 1;
      },
      [&](int64_t cell, const Sum& sum) {
        for (int lane = 0; lane < kLanes; ++lane)
          if (lane_of(sum, lane) != 0) narrow(__builtin_nan(""), values + lane * total + cell);
      });
}

// Rows of the output in pieces: one piece is a row, or part of a long one.
template <typename T>
struct Pieces {
  explicit Pieces(const HeatmapParams& p)
      : length(std::min(p.size[2], kRowBytes / int64_t{sizeof(T)})),
        per_row((p.size[2] + length - 1) / length),
        per_map(per_row * p.size[0] * p.size[1]) {}
  int64_t length, per_row, per_map;
};

// Writes pieces [begin, end) of some consecutive maps, `values` being the cells of the first.
template <typename T, bool kStream>
HD void expand(const HeatmapParams& p, const Grid& grid, const T* values, char* maps, int64_t begin,
               int64_t end) {
  const Pieces<T> pieces(p);
  alignas(64) T buffer[kRowBytes / sizeof(T) + kStep<T>];
  const int64_t width = p.size[2];
  const int64_t* const edges = grid.edges[2].data();
  int64_t i = begin;
  const int64_t row_of_begin = begin / pieces.per_row, piece_of_begin = begin % pieces.per_row;
  Writer<kStream> out(maps +
                      (row_of_begin * width + piece_of_begin * pieces.length) * int64_t{sizeof(T)});
  while (i < end) {
    const int64_t row = i / pieces.per_row;
    const int64_t y = row % p.size[1], z = row / p.size[1] % p.size[0];
    const int64_t map = row / p.size[1] / p.size[0];
    const int64_t left = (i % pieces.per_row) * pieces.length;
    const int64_t length = std::min(pieces.length, width - left);
    const int64_t segment_y = grid.segment[1][static_cast<size_t>(y)];
    const T* from =
        values + map * grid.total +
        (grid.segment[0][static_cast<size_t>(z)] * grid.cells[1] + segment_y) * grid.cells[2];
    const T* piece = buffer;
    if (grid.cells[2] == width) {
      piece = from + left;
    } else {
      int64_t segment = grid.segment[2][static_cast<size_t>(left)];
      for (int64_t x = left; x < left + length; ++segment) {
        const int64_t stop = std::min(edges[segment + 1], left + length);
        T splat[kStep<T>];  // overruns the segment; the next one overwrites that
        for (int64_t j = 0; j < kStep<T>; ++j) splat[j] = from[segment];
        for (; x < stop; x += kStep<T>) memcpy(buffer + (x - left), splat, sizeof(splat));
        x = stop;
      }
    }
    // All rows down to the next edge are equal.
    int64_t copies = 1;
    if (pieces.per_row == 1)
      copies = std::min(grid.edges[1][static_cast<size_t>(segment_y) + 1] - y, end - i);
    for (int64_t j = 0; j < copies; ++j)
      out.template copy<true>(reinterpret_cast<const char*>(piece), length * int64_t{sizeof(T)});
    i += copies;
  }
  out.finish();
}

template <typename T, int kLanes>
HD void group(const HeatmapParams& p, const Grid& grid, int64_t k, Member member,
              const Scratch<T, kLanes>& scratch, bool stream) {
  const int lanes = static_cast<int>(std::min(int64_t{kLanes}, p.k - k));
  compute_cells<T, kLanes>(p, grid, k, lanes, member, scratch);
  const int64_t pieces = Pieces<T>(p).per_map * lanes;
  char* maps = p.out + k * p.size[0] * p.size[1] * p.size[2] * int64_t{sizeof(T)};
  const int64_t begin = member.begin(pieces), end = member.end(pieces);
  if (stream) {
    expand<T, true>(p, grid, scratch.values.get(), maps, begin, end);
  } else {
    expand<T, false>(p, grid, scratch.values.get(), maps, begin, end);
  }
  if (k + lanes < p.k) member.wait();  // before the values are overwritten
}

// target_clones does not take templates.
#define BACKSIGHT_HEATMAP_CLONES(T)                                                           \
  BACKSIGHT_CLONES void run_group(const HeatmapParams& p, const Grid& grid, int64_t k,        \
                                  Member member, const Scratch<T, 4>& scratch, bool stream) { \
    group<T, 4>(p, grid, k, member, scratch, stream);                                         \
  }                                                                                           \
  BACKSIGHT_CLONES void run_group(const HeatmapParams& p, const Grid& grid, int64_t k,        \
                                  Member member, const Scratch<T, 1>& scratch, bool stream) { \
    group<T, 1>(p, grid, k, member, scratch, stream);                                         \
  }
BACKSIGHT_HEATMAP_CLONES(double)
BACKSIGHT_HEATMAP_CLONES(float)
BACKSIGHT_HEATMAP_CLONES(Half)
BACKSIGHT_HEATMAP_CLONES(BFloat16)

template <typename T, int kLanes>
void run_groups(const HeatmapParams& p, const Grid& grid, int threads, int64_t bytes) {
  const int64_t groups = (p.k + kLanes - 1) / kLanes;
  const bool stream = bytes >= kStreamBytes;
  const bool together = groups < 2 * threads;  // else every thread takes whole groups
  std::vector<std::unique_ptr<Scratch<T, kLanes>>> scratch;
  for (int i = 0; i < (together ? 1 : threads); ++i)
    scratch.push_back(std::make_unique<Scratch<T, kLanes>>(grid.total));
  if (together) {
    run_team(threads, [&](Member member) {
      for (int64_t g = 0; g < groups; ++g)
        run_group(p, grid, g * kLanes, member, *scratch[0], stream);
    });
  } else {
    std::atomic<int64_t> next{0};
    run_team(threads, [&](Member member) {
      for (int64_t g = next++; g < groups; g = next++) {
        run_group(p, grid, g * kLanes, Member{0, 1}, *scratch[static_cast<size_t>(member.index)],
                  stream);
      }
    });
  }
}

template <typename T>
void run(const HeatmapParams& p, int64_t bytes, int threads) {
  const int workers = std::max(1, usable_threads(threads, bytes + p.n * p.k * 8, threads));
  // Threads wait for each other several times here, which only many boxes repay.
  const int few = p.n >= kManyBoxes ? workers : 1;

  Marks marks;
  for (size_t axis = 0; axis < kAxes; ++axis) {
    marks[axis].assign(static_cast<size_t>(p.size[axis]) + 1, 0);
    marks[axis].front() = marks[axis].back() = 1;
  }
  run_team(few, [&](Member member) {
    with_dims(p.dims,
              [&](auto dims) { mark_edges<dims()>(p, member.begin(p.n), member.end(p.n), marks); });
  });
  Grid grid = make_grid(p, marks);
  grid.corners = std::make_unique<Buffer<int64_t>>(p.n * 2 * grid.half);
  grid.count = std::make_unique<Buffer<double>>(grid.total);
  {
    const Buffer<uint64_t> sums(grid.total);
    std::vector<int64_t> most(static_cast<size_t>(few), 0);
    run_team(few, [&](Member member) {
      with_dims(p.dims, [&](auto dims) {
        place_corners<dims()>(p, member.begin(p.n), member.end(p.n), grid);
      });
      member.wait();
      count_boxes(grid, member, sums.get(), p.n, grid.count->get(),
                  &most[static_cast<size_t>(member.index)]);
    });
    grid.width = digit_width(*std::max_element(most.begin(), most.end()));
  }
  if (p.k >= 4) {
    run_groups<T, 4>(p, grid, workers, bytes);
  } else {
    run_groups<T, 1>(p, grid, workers, bytes);
  }
}

}  // namespace

void heatmap(const HeatmapParams& p, int threads) {
  const int64_t bytes = p.k * p.size[0] * p.size[1] * p.size[2] * element_size(p.dtype);
  if (bytes == 0) return;
  switch (p.dtype) {
    case DType::kFloat64: return run<double>(p, bytes, threads);
    case DType::kFloat32: return run<float>(p, bytes, threads);
    case DType::kFloat16: return run<Half>(p, bytes, threads);
    case DType::kBFloat16: return run<BFloat16>(p, bytes, threads);
  }
}

}  // namespace backsight::cpu

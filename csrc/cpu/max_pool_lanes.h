// The inner loops of max_pool. See cpu/each_isa.h.

// The running maxima of one vector of windows.
template <typename T>
class Maxima {
 public:
  using Offsets = Vector<Index<T>>;

  HD void start(bool relu, const Offsets& first) {
    offset_ = first;
    best_ = Vector<T>{} + (relu ? T{0} : -static_cast<T>(__builtin_inf()));
  }
  HD void see(const T* at, const Offsets& offset) {
    const auto x = load(at);
    const auto take = (x > best_) | (x != x);  // is_new_maximum
    best_ = take ? x : best_;
    offset_ = take ? offset : offset_;
  }
  HD void finish(T* y, uint8_t* switches) const {
    store(y, best_);
    store_bytes<Index<T>>(switches, offset_);
  }
  HD void finish(T* y, Index<T>* switches) const {
    store(y, best_);
    store(switches, offset_);
  }

 private:
  Vector<T> best_{};
  Offsets offset_{};
};

// 16-bit floats compare as integers: sign and magnitude become one number, and NaN the largest.
template <typename T>
class Maxima16 {
 public:
  using Bits = Vector<int16_t>;

  HD void start(bool relu, const Bits& first) {
    offset_ = first;
    const int16_t best = relu ? 0 : -kInfinity;
    const int16_t bits = relu ? 0 : kInfinity | kSign;
    best_ = Bits{} + best;
    bits_ = Bits{} + bits;
  }
  HD void see(const T* at, const Bits& offset) {
    const Bits bits = load(reinterpret_cast<const int16_t*>(at));
    const Bits magnitude = bits & static_cast<int16_t>(~kSign);
    const Bits nan = magnitude > kInfinity;
    const Bits number = nan ? Bits{} + INT16_MAX : bits < 0 ? -magnitude : magnitude;
    const Bits take = (number > best_) | nan;
    best_ = take ? number : best_;
    bits_ = take ? bits : bits_;
    offset_ = take ? offset : offset_;
  }
  HD void finish(T* y, uint8_t* switches) const {
    store(y, bits_);
    store_bytes<int16_t>(switches, offset_);
  }
  HD void finish(T* y, int16_t* switches) const {
    store(y, bits_);
    store(switches, offset_);
  }

 private:
  static constexpr int16_t kInfinity = std::is_same<T, Half>::value ? 0x7c00 : 0x7f80;
  static constexpr int16_t kSign = INT16_MIN;
  Bits best_{}, bits_{}, offset_{};
};
template <>
class Maxima<Half> : public Maxima16<Half> {};
template <>
class Maxima<BFloat16> : public Maxima16<BFloat16> {};

// kVectors vectors of windows, `step` elements apart in x, to_step in y and switches.
template <int kVectors, typename T, typename Switch>
HD void pool_vectors(const Task<T, Switch>& task, int64_t from, int64_t step, int64_t to,
                     int64_t to_step, bool relu) {
  using Offset = Index<T>;
  Maxima<T> maxima[kVectors];
  const auto first = Vector<Offset>{} + static_cast<Offset>(task.first);
  for (int v = 0; v < kVectors; ++v) maxima[v].start(relu, first);
  for (const InsideCell* cell = task.cells; cell < task.cells + task.count; ++cell) {
    const auto offset = Vector<Offset>{} + static_cast<Offset>(cell->offset);
    const T* const x = task.x + cell->x + from;
    for (int v = 0; v < kVectors; ++v) maxima[v].see(x + v * step, offset);
  }
  for (int v = 0; v < kVectors; ++v)
    maxima[v].finish(task.y + to + v * to_step, task.switches + to + v * to_step);
}

// Windows of `channels` channels, at least a vector of them, `step` elements apart in x; the last
// vector of a window may overlap the one before. Several vectors at a time hide each other's
// latency: those of a window, or, if it has few, those of its neighbours. Memory is read in its
// order: the prefetcher makes nothing of a part of each pixel.
template <typename T>
HD void pool_channels(const Tasks<T, uint8_t>& tasks, int64_t channels, int64_t step) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (const auto& task : tasks.list) {
    if (channels >= 4 * kLanes) {
      for (int64_t i = 0; i < task.windows; ++i) {
        const int64_t from = i * step, to = i * channels;
        int64_t c = 0;
        for (; channels - c >= 4 * kLanes; c += 4 * kLanes)
          pool_vectors<4>(task, from + c, kLanes, to + c, kLanes, tasks.relu);
        for (; c < channels; c += kLanes) {
          const int64_t q = c > channels - kLanes ? channels - kLanes : c;
          pool_vectors<1>(task, from + q, kLanes, to + q, kLanes, tasks.relu);
        }
      }
      continue;
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t q = c > channels - kLanes ? channels - kLanes : c;
      int64_t i = 0;
      for (; i + 4 <= task.windows; i += 4)
        pool_vectors<4>(task, i * step + q, step, i * channels + q, channels, tasks.relu);
      for (; i < task.windows; ++i)
        pool_vectors<1>(task, i * step + q, step, i * channels + q, channels, tasks.relu);
    }
  }
}

// Windows of a vector each, `step` elements apart in x.
template <typename T>
HD void pool_planes(const Tasks<T, Index<T>>& tasks, int64_t step) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (const auto& task : tasks.list) {
    int64_t i = 0;
    for (; i + 4 <= task.windows; i += 4)
      pool_vectors<4>(task, i * step, step, i * kLanes, kLanes, tasks.relu);
    if ((task.windows & 2) != 0) {
      pool_vectors<2>(task, i * step, step, i * kLanes, kLanes, tasks.relu);
      i += 2;
    }
    if ((task.windows & 1) != 0) pool_vectors<1>(task, i * step, step, i * kLanes, 0, tasks.relu);
  }
}

#define BACKSIGHT_POOL(T)                                                            \
  inline void pool(const Tasks<T, uint8_t>& tasks, int64_t channels, int64_t step) { \
    pool_channels(tasks, channels, step);                                            \
  }                                                                                  \
  inline void pool(const Tasks<T, Index<T>>& tasks, int64_t step) { pool_planes(tasks, step); }
BACKSIGHT_POOL(double)
BACKSIGHT_POOL(float)
BACKSIGHT_POOL(Half)
BACKSIGHT_POOL(BFloat16)
#undef BACKSIGHT_POOL

#include "cpu/plane_lanes.h"

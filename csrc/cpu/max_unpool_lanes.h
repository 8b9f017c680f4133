// The inner loops of max_unpool. See cpu/each_isa.h.

// The running results of one vector of cells.
template <typename T, Merge kMerge>
class Cells {
 public:
  using Offsets = Vector<Index<T>>;

  HD void see(const T* y, const Offsets& match) {
    const auto value = load(y);
    if (kMerge != Merge::kLast) {
      sum_ += match ? value : Vector<T>{};
    } else {
      sum_ = match ? value : sum_;
    }
  }
  HD void finish(bool relu, T* to) {
    if (relu) sum_ = sum_ < 0 ? Vector<T>{} : sum_;
    store(to, sum_);
  }

 private:
  Vector<T> sum_{};
};

// 16-bit floats are added up as floats, half a vector at a time.
template <typename T, Merge kMerge>
class Cells16 {
 public:
  using Offsets = Vector<int16_t>;

  HD void see(const T* y, const Offsets& match) {
    const Offsets value = load(reinterpret_cast<const int16_t*>(y));
    if (kMerge != Merge::kSum) {
      last_ = match ? value : last_;
      return;
    }
    const Offsets kept = value & match;
    int16_t lanes[kLanes];
    store(lanes, kept);
    for (int half = 0; half < 2; ++half)
      sum_[half] += widen_lanes(load_as<int32_t>(lanes + half * kLanes / 2), T{});
  }
  HD void finish(bool relu, T* to) {
    if (kMerge == Merge::kOnly)
      last_ = last_ == static_cast<int16_t>(INT16_MIN) ? Offsets{} : last_;  // -0, as a sum
    if (kMerge == Merge::kSum) {
      int16_t lanes[kLanes];
      for (int half = 0; half < 2; ++half) {
        const Vector<int32_t> bits = narrow_lanes(sum_[half], T{});
        for (int i = 0; i < kLanes / 2; ++i)
          lanes[half * kLanes / 2 + i] = static_cast<int16_t>(bits[i]);
      }
      last_ = load(lanes);
    }
    if (relu) {  // what is negative and no NaN
      constexpr int16_t kInfinity = std::is_same<T, Half>::value ? 0x7c00 : 0x7f80;
      const Offsets magnitude = last_ & INT16_MAX;
      last_ = (last_ < 0) & (magnitude > 0) & (magnitude <= kInfinity) ? Offsets{} : last_;
    }
    store(to, last_);
  }

 private:
  static constexpr int kLanes = kBytes / 2;
  Vector<float> sum_[2]{};
  Offsets last_{};
};
template <Merge kMerge>
class Cells<Half, kMerge> : public Cells16<Half, kMerge> {};
template <Merge kMerge>
class Cells<BFloat16, kMerge> : public Cells16<BFloat16, kMerge> {};

// kVectors vectors of cells, `step` elements apart in y and switches, and to_step apart in `to`.
template <int kVectors, Merge kMerge, typename T, typename Switch>
HD void spread_vectors(const Task<T, Switch>& task, int64_t from, int64_t step, T* to,
                       int64_t to_step, bool relu) {
  using Offset = Index<T>;
  Cells<T, kMerge> cells[kVectors];
  for (const Window* w = task.windows; w < task.windows + task.count; ++w) {
    const Switch* const switches = task.switches + w->switches + from;
    const T* const y = task.y + w->y + from;
    const auto offset = Vector<Offset>{} + static_cast<Offset>(w->offset);
    for (int v = 0; v < kVectors; ++v)
      cells[v].see(y + v * step, load_as<Offset>(switches + v * step) == offset);
  }
  for (int v = 0; v < kVectors; ++v) cells[v].finish(relu, to + v * to_step);
}

// `count` vectors.
template <Merge kMerge, typename T, typename Switch>
HD void spread_task(const Task<T, Switch>& task, int64_t count, T* to, int64_t to_step, bool relu) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  if constexpr (kMerge == Merge::kSum && sizeof(T) == 2)
    if (task.count <= 1) return spread_task<Merge::kOnly>(task, count, to, to_step, relu);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    spread_vectors<4, kMerge>(task, i * kLanes, kLanes, to + i * to_step, to_step, relu);
  if ((count & 2) != 0) {
    spread_vectors<2, kMerge>(task, i * kLanes, kLanes, to + i * to_step, to_step, relu);
    i += 2;
  }
  if ((count & 1) != 0)
    spread_vectors<1, kMerge>(task, i * kLanes, kLanes, to + i * to_step, to_step, relu);
}

// Cells of `channels` channels, at least a vector of them; the last may overlap the one before.
template <Merge kMerge, typename T>
HD void spread_channels(const Tasks<T, uint8_t>& tasks, int64_t channels) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (const auto& task : tasks.list) {
    spread_task<kMerge>(task, channels / kLanes, task.to, kLanes, tasks.relu);
    const int64_t last = channels - kLanes;
    if (channels % kLanes != 0)
      spread_vectors<1, kMerge>(task, last, kLanes, task.to + last, kLanes, tasks.relu);
  }
}

// Cells of one vector each, under windows side by side.
template <Merge kMerge, typename T>
HD void spread_cells(const Tasks<T, Index<T>>& tasks, int64_t to_step) {
  for (const auto& task : tasks.list)
    spread_task<kMerge>(task, task.cells, task.to, to_step, tasks.relu);
}

template <int kBlock>
struct Bytes {
  typedef uint8_t type __attribute__((vector_size(kBlock)));
};

// Whether all of these rows, `step` apart, of `count` bytes each are at most `last`. The last block
// of a row may overlap the one before.
template <int kBlock>
HD bool are_at_most(const uint8_t* switches, int64_t rows, int64_t step, int64_t count,
                    uint8_t last) {
  typename Bytes<kBlock>::type worst{}, block;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; i += kBlock) {
      memcpy(&block, switches + row * step + (i < count - kBlock ? i : count - kBlock), kBlock);
      worst = worst > block ? worst : block;
    }
  }
  bool right = true;
  for (int i = 0; i < kBlock; ++i) right &= worst[i] <= last;
  return right;
}
inline bool are_at_most(const uint8_t* switches, int64_t rows, int64_t step, int64_t count,
                        uint8_t last) {
  if (count >= kBytes) return are_at_most<kBytes>(switches, rows, step, count, last);
  if (count >= 16) return are_at_most<16>(switches, rows, step, count, last);
  if (count >= 8) return are_at_most<8>(switches, rows, step, count, last);
  if (count >= 4) return are_at_most<4>(switches, rows, step, count, last);
  bool right = true;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < count; ++i) right &= switches[row * step + i] <= last;
  return right;
}

// Whether bit switches[i], which is below 32, of valid[i * step] is set for all i.
template <int kStep>
HD bool are_among(const uint8_t* switches, int64_t count, const uint32_t* valid) {
  uint32_t all = 1;
  for (int64_t i = 0; i < count; ++i) all &= valid[i * kStep] >> (switches[i] & 31);
  return (all & 1) != 0;
}
inline bool are_among_each(const uint8_t* switches, int64_t count, const uint32_t* valid) {
  return are_among<1>(switches, count, valid);
}
inline bool are_among_same(const uint8_t* switches, int64_t count, const uint32_t* valid) {
  return are_among<0>(switches, count, valid);
}

#define BACKSIGHT_SPREAD(T)                                              \
  inline void spread(const Tasks<T, uint8_t>& tasks, int64_t channels) { \
    tasks.set ? spread_channels<Merge::kLast>(tasks, channels)           \
              : spread_channels<Merge::kSum>(tasks, channels);           \
  }                                                                      \
  inline void spread(const Tasks<T, Index<T>>& tasks, int64_t to_step) { \
    tasks.set ? spread_cells<Merge::kLast>(tasks, to_step)               \
              : spread_cells<Merge::kSum>(tasks, to_step);               \
  }
BACKSIGHT_SPREAD(double)
BACKSIGHT_SPREAD(float)
BACKSIGHT_SPREAD(Half)
BACKSIGHT_SPREAD(BFloat16)
#undef BACKSIGHT_SPREAD

#include "cpu/plane_lanes.h"

// The inner loops of max_unpool. See cpu/each_isa.h.

// The running results of one vector of cells. kSum: several windows may point to a cell, whose y
// are added up; else the last of them is what counts.
template <typename T, bool kSum>
class Cells {
 public:
  using Offsets = Vector<Index<T>>;

  HD void see(const T* y, const Offsets& match) {
    const auto value = load(y);
    if (kSum) {
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
template <typename T, bool kSum>
class Cells16 {
 public:
  using Offsets = Vector<int16_t>;

  HD void see(const T* y, const Offsets& match) {
    const Offsets value = load(reinterpret_cast<const int16_t*>(y));
    if (!kSum) {
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
    if (kSum) {
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
template <bool kSum>
class Cells<Half, kSum> : public Cells16<Half, kSum> {};
template <bool kSum>
class Cells<BFloat16, kSum> : public Cells16<BFloat16, kSum> {};

// Cells q and those after it, kVectors full of them.
template <int kVectors, bool kSum, typename T, typename Switch>
HD void spread_vectors(const Spread<T, Switch>& s, int64_t q, T* to) {
  constexpr int kLanes = kBytes / sizeof(T);
  using Offset = Index<T>;
  Cells<T, kSum> cells[kVectors];
  for (int64_t i = 0; i < s.windows->count; ++i) {
    const Window& w = s.windows->list[i];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lane = q + v * kLanes;
      const auto found = load_as<Offset>(s.switches + w.switches + lane);
      cells[v].see(s.y + w.y + lane, found == static_cast<Offset>(w.offset));
    }
  }
  for (int v = 0; v < kVectors; ++v) cells[v].finish(s.relu, to + q + v * kLanes);
}

// `count` cells, at least a vector of them.
template <bool kSum, typename T, typename Switch>
HD void spread_lanes(const Spread<T, Switch>& s, int64_t count, T* to) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  int64_t q = 0;
  for (; q + 4 * kLanes <= count; q += 4 * kLanes) spread_vectors<4, kSum>(s, q, to);
  for (; q + kLanes <= count; q += kLanes) spread_vectors<1, kSum>(s, q, to);
  if (q < count) spread_vectors<1, kSum>(s, count - kLanes, to);
}

#define BACKSIGHT_SPREAD(T, Switch)                                               \
  inline void spread(const Spread<T, Switch>& s, int64_t count, T* to) {          \
    s.set ? spread_lanes<false>(s, count, to) : spread_lanes<true>(s, count, to); \
  }
BACKSIGHT_SPREAD(double, uint8_t)
BACKSIGHT_SPREAD(float, uint8_t)
BACKSIGHT_SPREAD(Half, uint8_t)
BACKSIGHT_SPREAD(BFloat16, uint8_t)
#undef BACKSIGHT_SPREAD

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
  HD void store(T* y, Index<T>* offset) const {
    memcpy(y, &best_, sizeof(best_));
    memcpy(offset, &offset_, sizeof(offset_));
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
  HD void store(T* y, int16_t* offset) const {
    memcpy(y, &bits_, sizeof(bits_));
    memcpy(offset, &offset_, sizeof(offset_));
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

// Windows q and those after it, kVectors full of them.
template <int kVectors, typename T>
HD void pool_vectors(const Windows<T>& w, int64_t q, T* y, uint8_t* switches) {
  constexpr int kLanes = kBytes / sizeof(T);
  using Offsets = Vector<Index<T>>;
  Maxima<T> maxima[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    auto offset = Offsets{} + static_cast<Index<T>>(w.start);
    if (w.first) offset += load(w.first + q + v * kLanes);
    maxima[v].start(w.relu, offset);
  }
  for (int64_t i = 0; i < w.cells->count; ++i) {
    const auto offset = Offsets{} + static_cast<Index<T>>(w.cells->offset[i]);
    const T* const at = w.from + w.cells->from[i] + q;
    for (int v = 0; v < kVectors; ++v) maxima[v].see(at + v * kLanes, offset);
  }
  alignas(64) Index<T> offsets[kVectors * kLanes];
  for (int v = 0; v < kVectors; ++v) maxima[v].store(y + q + v * kLanes, offsets + v * kLanes);
  for (int j = 0; j < kVectors * kLanes; ++j) switches[q + j] = static_cast<uint8_t>(offsets[j]);
}

// `count` windows, at least a vector of them. The last vectors may overlap the ones before: several
// at a time hide each other's latency.
template <typename T>
HD void pool_lanes(const Windows<T>& w, int64_t count, T* y, uint8_t* switches) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  int64_t q = 0;
  for (; q + 4 * kLanes <= count; q += 4 * kLanes) pool_vectors<4>(w, q, y, switches);
  if (q == count) return;
  const int64_t vectors = (count - q + kLanes - 1) / kLanes;
  if (vectors * kLanes > count) {
    for (; q + kLanes <= count; q += kLanes) pool_vectors<1>(w, q, y, switches);
    return pool_vectors<1>(w, count - kLanes, y, switches);
  }
  switch (vectors) {
    case 1: return pool_vectors<1>(w, count - kLanes, y, switches);
    case 2: return pool_vectors<2>(w, count - 2 * kLanes, y, switches);
    case 3: return pool_vectors<3>(w, count - 3 * kLanes, y, switches);
    default: return pool_vectors<4>(w, count - 4 * kLanes, y, switches);
  }
}

// even[i] = from[2 * i] and odd[i] = from[2 * i + 1], for at least a vector of i.
template <typename T>
HD void unzip_lanes(T* even, T* odd, const T* from, int64_t count) {
  constexpr int kLanes = kBytes / sizeof(T);
  Vector<Index<T>> evens, odds;
  for (int i = 0; i < kLanes; ++i) {
    evens[i] = static_cast<Index<T>>(2 * i);
    odds[i] = static_cast<Index<T>>(2 * i + 1);
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    if (i > count - kLanes) i = count - kLanes;
    const auto a = load(reinterpret_cast<const Index<T>*>(from + 2 * i));
    const auto b = load(reinterpret_cast<const Index<T>*>(from + 2 * i + kLanes));
    const auto first = __builtin_shuffle(a, b, evens), second = __builtin_shuffle(a, b, odds);
    memcpy(even + i, &first, sizeof(first));
    memcpy(odd + i, &second, sizeof(second));
  }
}

#define BACKSIGHT_LANES(T)                                                        \
  inline void pool(const Windows<T>& w, int64_t count, T* y, uint8_t* switches) { \
    pool_lanes(w, count, y, switches);                                            \
  }                                                                               \
  inline void unzip(T* even, T* odd, const T* from, int64_t count) {              \
    unzip_lanes(even, odd, from, count);                                          \
  }
BACKSIGHT_LANES(double)
BACKSIGHT_LANES(float)
BACKSIGHT_LANES(Half)
BACKSIGHT_LANES(BFloat16)
#undef BACKSIGHT_LANES

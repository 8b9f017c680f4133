// Planes side by side in the lanes of vectors: cell i of plane k is number i * lanes + k. See
// cpu/each_isa.h.

// Lane j of vector i and lane i of vector j change places. T is an integer.
template <typename T, int kHalf>
HD void transpose_blocks(Vector<T>* v) {
  constexpr int kLanes = kBytes / sizeof(T);
  Vector<T> first, second;
  for (int j = 0; j < kLanes; ++j) {
    const bool upper = (j & kHalf) != 0;
    first[j] = static_cast<T>(upper ? kLanes + j - kHalf : j);
    second[j] = static_cast<T>(upper ? kLanes + j : j + kHalf);
  }
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kHalf) != 0) continue;
    const Vector<T> a = v[i], b = v[i + kHalf];
    v[i] = __builtin_shuffle(a, b, first);
    v[i + kHalf] = __builtin_shuffle(a, b, second);
  }
  if constexpr (kHalf > 1) transpose_blocks<T, kHalf / 2>(v);
}

// Cells [0, count) of as many planes as a vector has lanes. The last block may overlap the one
// before.
template <typename T, typename From>
HD void gather_planes(const From* const* planes, int64_t count, T* to) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  if (count < kLanes) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < kLanes; ++k) to[i * kLanes + k] = static_cast<T>(planes[k][i]);
    return;
  }
  constexpr int64_t kAhead = 512 / sizeof(From);
  for (int64_t i = 0; i < count; i += kLanes) {
    if (i > count - kLanes) i = count - kLanes;
    Vector<T> v[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) {
      v[k] = load_as<T>(planes[k] + i);
      __builtin_prefetch(planes[k] + i + kAhead);
    }
    transpose_blocks<T, kLanes / 2>(v);
    for (int64_t k = 0; k < kLanes; ++k) store(to + (i + k) * kLanes, v[k]);
  }
}

// The way back, to the first `used` planes.
template <typename T, typename To>
HD void scatter_planes(const T* from, int64_t count, To* const* planes, int64_t used) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  if (count < kLanes) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < used; ++k) planes[k][i] = static_cast<To>(from[i * kLanes + k]);
    return;
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    if (i > count - kLanes) i = count - kLanes;
    Vector<T> v[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) v[k] = load(from + (i + k) * kLanes);
    transpose_blocks<T, kLanes / 2>(v);
    for (int64_t k = 0; k < used; ++k) {
      if constexpr (sizeof(To) == 1) {
        store_bytes<T>(planes[k] + i, v[k]);
      } else {
        store(planes[k] + i, v[k]);
      }
    }
  }
}

#define BACKSIGHT_PLANES(T)                                                                   \
  inline void planes_to_lanes(const T* const* planes, int64_t count, T* to) {                 \
    gather_planes(planes, count, to);                                                         \
  }                                                                                           \
  inline void planes_to_lanes(const uint8_t* const* planes, int64_t count, T* to) {           \
    gather_planes(planes, count, to);                                                         \
  }                                                                                           \
  inline void lanes_to_planes(const T* from, int64_t count, T* const* planes, int64_t used) { \
    scatter_planes(from, count, planes, used);                                                \
  }                                                                                           \
  inline void lanes_to_planes(const T* from, int64_t count, uint8_t* const* planes,           \
                              int64_t used) {                                                 \
    scatter_planes(from, count, planes, used);                                                \
  }
BACKSIGHT_PLANES(int16_t)
BACKSIGHT_PLANES(int32_t)
BACKSIGHT_PLANES(int64_t)
#undef BACKSIGHT_PLANES

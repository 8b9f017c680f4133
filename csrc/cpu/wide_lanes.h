// Vectors of what elements are computed in. See cpu/each_isa.h.

template <typename W>
constexpr int64_t kLanesOf = kBytes / sizeof(W);

template <typename T>
HD Vector<Widened<T>> load_wide(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return widen_lanes(load_as<int32_t>(reinterpret_cast<const int16_t*>(from)), T{});
  } else {
    return load(from);
  }
}

template <typename T>
HD void store_narrow(T* to, const Vector<Widened<T>>& v) {
  if constexpr (sizeof(T) == 2) {
    const Vector<int32_t> bits = narrow_lanes(v, T{});
#if BACKSIGHT_HAS_TARGETS
    if constexpr (kBytes == 64) {
      _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(-1, (__m512i)bits));
      return;
    }
#endif
    for (size_t i = 0; i < kBytes / sizeof(int32_t); ++i)
      to[i].bits = static_cast<uint16_t>(bits[i]);
  } else {
    store(to, v);
  }
}

template <typename W>
HD Vector<W> masked(const Vector<W>& x, const Vector<W>& bits) {
  using Bits = Vector<std::conditional_t<sizeof(W) == 8, int64_t, int32_t>>;
  return bit_cast<Vector<W>>(bit_cast<Bits>(x) & bit_cast<Bits>(bits));
}

template <typename W>
HD Vector<W> rectified_lanes(const Vector<W>& x) {
  return x < 0 ? Vector<W>{} : x;
}

// Vectors of kBytes. See cpu/each_isa.h.

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
HD Vector<T> load(const T* from) {
  Vector<T> v;
  memcpy(&v, from, sizeof(v));
  return v;
}
template <typename V, typename T>
HD void store(T* to, const V& v) {
  memcpy(to, &v, sizeof(v));
}

// As many lanes of another type; U may be narrower.
template <typename T, typename U>
HD Vector<T> load_as(const U* from) {
  typedef U Narrow __attribute__((vector_size(kBytes / sizeof(T) * sizeof(U))));
  Narrow v;
  memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, Vector<T>);
}

// Conversions of 16-bit floats in lanes of 32 bits, as in core/dtype.h.
HD Vector<float> widen_lanes(const Vector<int32_t>& bits, BFloat16) {
  return bit_cast<Vector<float>>(bits << 16);
}
HD Vector<float> widen_lanes(const Vector<int32_t>& bits, Half) {
  const Vector<int32_t> sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  const auto value = bit_cast<Vector<float>>(magnitude << 13) * 0x1p112f;
  const Vector<int32_t> finite = bit_cast<Vector<int32_t>>(value);
  const Vector<int32_t> special = magnitude << 13 | 0x7f800000;
  return bit_cast<Vector<float>>((magnitude >= 0x7c00 ? special : finite) | sign);
}
HD Vector<int32_t> narrow_lanes(const Vector<float>& x, BFloat16) {
  const Vector<int32_t> u = bit_cast<Vector<int32_t>>(x), rounded = u + 0x7fff + (u >> 16 & 1);
  return (u & 0x7fffffff) > 0x7f800000 ? Vector<int32_t>{} + 0x7fc0 : rounded >> 16 & 0xffff;
}
HD Vector<int32_t> narrow_lanes(const Vector<float>& x, Half) {
  const Vector<int32_t> u = bit_cast<Vector<int32_t>>(x), magnitude = u & 0x7fffffff;
  const auto aligned = bit_cast<Vector<float>>(magnitude) + 0.5f;
  const Vector<int32_t> subnormal = bit_cast<Vector<int32_t>>(aligned) - 0x3f000000;
  const Vector<int32_t> normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  Vector<int32_t> bits = magnitude < 0x38800000 ? subnormal : normal;
  bits = magnitude >= 0x47800000 ? Vector<int32_t>{} + 0x7c00 : bits;
  bits = magnitude > 0x7f800000 ? Vector<int32_t>{} + 0x7e00 : bits;
  return bits | (u >> 16 & 0x8000);
}

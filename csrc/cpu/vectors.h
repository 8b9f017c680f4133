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

// As many integers, of as many bytes as T has. Compilers take the lanes of __builtin_convertvector
// apart; and only where all lanes are masked, as none is here, GCC 12 warns of no uninitialised
// ones.
template <typename T, typename U>
HD Vector<T> load_as(const U* from) {
  constexpr int kLanes = kBytes / sizeof(T);
  Vector<T> v{};
  if constexpr (sizeof(T) == sizeof(U)) {
    memcpy(&v, from, sizeof(v));
#if BACKSIGHT_HAS_TARGETS
  } else if constexpr (kBytes == 64) {
    if constexpr (sizeof(T) == 2) {
      v = (Vector<T>)_mm512_maskz_cvtepu8_epi16(-1, _mm256_loadu_si256((const __m256i*)from));
    } else if constexpr (sizeof(T) == 4 && sizeof(U) == 2) {
      v = (Vector<T>)_mm512_maskz_cvtepi16_epi32(-1, _mm256_loadu_si256((const __m256i*)from));
    } else if constexpr (sizeof(T) == 4) {
      v = (Vector<T>)_mm512_maskz_cvtepu8_epi32(-1, _mm_loadu_si128((const __m128i*)from));
    } else {
      v = (Vector<T>)_mm512_maskz_cvtepu8_epi64(-1, _mm_loadl_epi64((const __m128i*)from));
    }
  } else if constexpr (kBytes == 32) {
    if constexpr (sizeof(T) == 2) {
      v = (Vector<T>)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
    } else if constexpr (sizeof(T) == 4 && sizeof(U) == 2) {
      v = (Vector<T>)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)from));
    } else if constexpr (sizeof(T) == 4) {
      v = (Vector<T>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
    } else {
      int32_t four;
      memcpy(&four, from, sizeof(four));
      v = (Vector<T>)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    }
#endif
  } else {
    for (int i = 0; i < kLanes; ++i) v[i] = static_cast<T>(from[i]);
  }
  return v;
}

// The low bytes of the lanes.
template <typename T>
HD void store_bytes(uint8_t* to, const Vector<T>& v) {
  constexpr int kLanes = kBytes / sizeof(T);
#if BACKSIGHT_HAS_TARGETS
  if constexpr (kBytes == 64) {
    if constexpr (sizeof(T) == 2) {
      _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi16_epi8(-1, (__m512i)v));
    } else if constexpr (sizeof(T) == 4) {
      _mm_storeu_si128((__m128i*)to, _mm512_maskz_cvtepi32_epi8(-1, (__m512i)v));
    } else {
      _mm_storel_epi64((__m128i*)to, _mm512_maskz_cvtepi64_epi8(-1, (__m512i)v));
    }
    return;
  }
#endif
  T lanes[kLanes];
  memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<uint8_t>(lanes[i]);
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

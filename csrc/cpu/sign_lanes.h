// Vectors of elements whose signs are what counts, with a bit for each lane. See cpu/each_isa.h.

// What an element is compared as: 16-bit floats as the integers of core/bits.h.
template <typename T>
using Value = std::conditional_t<sizeof(T) == 2, int16_t, T>;

// kCount lanes, a multiple of 8: as few vectors as they fit.
template <typename T, int kCount>
class SignLanes {
 public:
  HD void load(const Value<T>* from) { memcpy(part_, from, sizeof(part_)); }
  HD void store(Value<T>* to) const { memcpy(to, part_, sizeof(part_)); }

  // A bit for each lane where a gradient passes.
  HD uint32_t passing() const {
    uint32_t bits = 0;
    for (int k = 0; k < kParts; ++k) bits |= passing(part_[k]) << (k * kEach);
    return bits;
  }

  // max(x, 0).
  HD void clamp() {
    for (Part& x : part_) {
      if constexpr (sizeof(T) == 2) {
        x &= (x > Pattern<T>::kMinusInfinity) | (x == Pattern<T>::kLeast);
      } else {
        x = Part{} > x ? Part{} : x;
      }
    }
  }

  // 0 in the lanes whose bit is clear.
  HD void keep(uint32_t bits) {
    for (int k = 0; k < kParts; ++k) keep(part_[k], bits >> (k * kEach));
  }

 private:
  static constexpr int kSize = kCount * sizeof(T) < kBytes ? kCount * sizeof(T) : kBytes;
  static constexpr int kParts = kCount * sizeof(T) / kSize, kEach = kSize / sizeof(T);
  typedef Value<T> Part __attribute__((vector_size(kSize)));
  using Int = typename Pattern<T>::Int;
  typedef Int Mask __attribute__((vector_size(kSize)));

  static HD uint32_t passing(const Part& x) {
#if defined(__SSE2__)
    if constexpr (kSize == 64) {
      if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask(x, __m512d{}, _CMP_NLE_UQ);
      if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(x, __m512{}, _CMP_NLE_UQ);
      const auto v = reinterpret_cast<__m512i>(x);
      const __m512i least = _mm512_set1_epi16(static_cast<int16_t>(Pattern<T>::kMinusInfinity));
      return _mm512_cmpgt_epi16_mask(v, least) & _mm512_test_epi16_mask(v, v);
    }
#endif
    if constexpr (sizeof(T) == 2) {
      return gather((x > Pattern<T>::kMinusInfinity) & (x != 0));
    } else {
      return gather(~(x <= 0));
    }
  }

  // A bit for each lane that is all bits; the others are none.
  static HD uint32_t gather(const Mask& mask) {
#if defined(__SSE2__)
    if constexpr (kSize == 32) {
      const auto v = reinterpret_cast<__m256i>(mask);
      if constexpr (sizeof(T) == 8)
        return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(v)));
      if constexpr (sizeof(T) == 4)
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(v)));
      const __m128i bytes =
          _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
      return static_cast<uint32_t>(_mm_movemask_epi8(bytes));
    }
    if constexpr (kSize == 16) {
      const auto v = reinterpret_cast<__m128i>(mask);
      if constexpr (sizeof(T) == 8)
        return static_cast<uint32_t>(_mm_movemask_pd(_mm_castsi128_pd(v)));
      if constexpr (sizeof(T) == 4)
        return static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(v)));
      return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(v, __m128i{})));
    }
#endif
    uint32_t bits = 0;
    for (int k = 0; k < kEach; ++k) bits |= static_cast<uint32_t>(mask[k] & 1) << k;
    return bits;
  }

  static HD void keep(Part& x, uint32_t bits) {
#if defined(__SSE2__)
    if constexpr (kSize == 64) {
      if constexpr (sizeof(T) == 8) {
        x = _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), x);
      } else if constexpr (sizeof(T) == 4) {
        x = _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), x);
      } else {
        x = reinterpret_cast<Part>(_mm512_maskz_mov_epi16(bits, reinterpret_cast<__m512i>(x)));
      }
      return;
    }
#endif
    Mask weight{};
    for (int k = 0; k < kEach; ++k) weight[k] = static_cast<Int>(Int{1} << k);
    const Mask kept = ((Mask{} + static_cast<Int>(bits)) & weight) == weight;
    x = reinterpret_cast<Part>(reinterpret_cast<Mask>(x) & kept);
  }

  Part part_[kParts];
};

// Lanes of the widest vectors there are, or 8.
template <typename T>
constexpr int kWide = kBytes / sizeof(T) > kGroup ? kBytes / sizeof(T) : kGroup;

constexpr int kWord = 64;  // lanes whose bits are read or written at once

// kCount bits, the lowest in the first byte.
template <int kCount>
HD uint64_t load_bits(const uint8_t* from) {
  uint64_t bits = 0;
  for (int k = 0; k < kCount / 8; ++k) bits |= uint64_t{from[k]} << (8 * k);
  return bits;
}

template <int kCount>
HD void store_bits(uint8_t* to, uint64_t bits) {
  for (int k = 0; k < kCount / 8; ++k) to[k] = static_cast<uint8_t>(bits >> (8 * k));
}

// The inner loops of relu. See cpu/each_isa.h.

#include "cpu/sign_lanes.h"

template <typename T, int kCount>
HD uint32_t relu_lanes(const Value<T>* x, Value<T>* y) {
  SignLanes<T, kCount> lanes;
  lanes.load(x);
  const uint32_t bits = lanes.passing();
  lanes.clamp();
  lanes.store(y);
  return bits;
}

// A row, or what is left of it, in whole groups, a byte of bits each; returns its groups. The end
// of the row is written eight elements wide as well if there is `room` for it.
template <typename T>
HD int64_t relu_row(const Value<T>* x, Value<T>* y, uint8_t* bits, int64_t length, int64_t room) {
  constexpr int kLanes = kWide<T>;
  int64_t i = 0;
  for (; i + kWord <= length; i += kWord) {
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int k = 0; k < kWord; k += kLanes)
      word |= uint64_t{relu_lanes<T, kLanes>(x + i + k, y + i + k)} << k;
    store_bits<kWord>(bits + i / kGroup, word);
  }
  for (; i + kLanes <= length; i += kLanes)
    store_bits<kLanes>(bits + i / kGroup, relu_lanes<T, kLanes>(x + i, y + i));
  if (kLanes > kGroup)
    for (; i + kGroup <= length; i += kGroup)
      store_bits<kGroup>(bits + i / kGroup, relu_lanes<T, kGroup>(x + i, y + i));
  if (i < length) {
    const int64_t count = length - i;
    const uint32_t mine = 0xffu >> (kGroup - count);
    if (room - i >= kGroup) {
      store_bits<kGroup>(bits + i / kGroup, relu_lanes<T, kGroup>(x + i, y + i) & mine);
    } else {
      Value<T> last[kGroup]{};
      memcpy(last, x + i, static_cast<size_t>(count) * sizeof(T));
      store_bits<kGroup>(bits + i / kGroup, relu_lanes<T, kGroup>(last, last) & mine);
      memcpy(y + i, last, static_cast<size_t>(count) * sizeof(T));
    }
  }
  return groups_of(length);
}

// Rows of kFull groups and some elements, all but the last. Returns how many.
template <typename T, int kFull>
HD int64_t relu_short_rows(const Value<T>* x, Value<T>* y, uint8_t* bits, int64_t rows,
                           int64_t length) {
  const uint32_t mine = 0xffu >> (kGroup - length % kGroup);
  int64_t row = 0;
  for (int64_t left = rows * length; left >= (kFull + 1) * kGroup; left -= length, ++row) {
#pragma GCC unroll 4
    for (int k = 0; k <= kFull; ++k) {
      const uint32_t all = relu_lanes<T, kGroup>(x + k * kGroup, y + k * kGroup);
      bits[k] = static_cast<uint8_t>(k < kFull ? all : all & mine);
    }
    x += length;
    y += length;
    bits += kFull + 1;
  }
  return row;
}

// `rows` rows of `length` elements. What lies beyond a row is written again with the next one, to
// the same values even where y is x. Only what lies beyond the last row is left alone, since other
// threads write it.
template <typename T>
void relu_rows(const void* from, void* to, uint8_t* bits, int64_t rows, int64_t length) {
  const Value<T>* x = static_cast<const Value<T>*>(from);
  Value<T>* y = static_cast<Value<T>*>(to);
  int64_t row = 0;
  if (length % kGroup != 0) {
    switch (length / kGroup) {
      case 0: row = relu_short_rows<T, 0>(x, y, bits, rows, length); break;
      case 1: row = relu_short_rows<T, 1>(x, y, bits, rows, length); break;
      case 2: row = relu_short_rows<T, 2>(x, y, bits, rows, length); break;
      case 3: row = relu_short_rows<T, 3>(x, y, bits, rows, length); break;
    }
  }
  bits += row * groups_of(length);
  for (; row < rows; ++row)
    bits += relu_row<T>(x + row * length, y + row * length, bits, length, (rows - row) * length);
}

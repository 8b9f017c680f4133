// The inner loops of rectify. See cpu/each_isa.h.

#include "cpu/sign_lanes.h"

// Applies a rule to elements one after the other. The end of a row is written eight elements wide
// as well: what lies beyond is written next. Only what lies behind `end`, which other threads
// write, is left alone.
template <typename T, Rule kRule>
class Sweep {
 public:
  // Elements [begin, end) of the whole arrays.
  HD Sweep(const void* grad, void* out, int64_t begin, int64_t end)
      : grad_(static_cast<const Value<T>*>(grad) + begin),
        out_(static_cast<Value<T>*>(out) + begin),
        left_(end - begin) {}

  // `rows` rows of `length` elements whose bytes begin each row anew.
  HD void rows(const uint8_t* bits, int64_t rows, int64_t length) {
    int64_t row = 0;
    if (length % kGroup != 0) {
      switch (length / kGroup) {
        case 0: row = short_rows<0>(bits, rows, length); break;
        case 1: row = short_rows<1>(bits, rows, length); break;
        case 2: row = short_rows<2>(bits, rows, length); break;
        case 3: row = short_rows<3>(bits, rows, length); break;
      }
    }
    for (; row < rows; ++row)
      this->row(uses_bits(kRule) ? bits + row * groups_of(length) : nullptr, length);
  }

  // `count` elements whose bits are those of `bits` from bit `at` on; no byte from `stop` on may be
  // read.
  HD void cells(const uint8_t* bits, int64_t at, int64_t count, const uint8_t* stop) {
    constexpr int64_t kMost = kWord - kGroup;  // so many bits are left of a word after any shift
    while (count > 0) {
      const int64_t here = min64(count, kMost);
      uint64_t word = 0;
      if (uses_bits(kRule)) {
        const uint8_t* const from = bits + at / kGroup;
        const int64_t shift = at % kGroup;
        if (stop - from >= kWord / kGroup) {
          word = load_bits<kWord>(from) >> shift;
        } else {
          for (int64_t k = 0; k < groups_of(shift + here); ++k)
            word |= uint64_t{from[k]} << (k * kGroup);
          word >>= shift;
        }
      }
      int64_t i = 0;
      for (; i + kWide<T> <= here; i += kWide<T>) lanes<kWide<T>>(i, word >> i);
      if (kWide<T> > kGroup)
        for (; i + kGroup <= here; i += kGroup) lanes<kGroup>(i, word >> i);
      if (i < here) last(i, here - i, word >> i);
      advance(here);
      at += here;
      count -= here;
    }
  }

  HD void fill(typename Pattern<T>::Int value, int64_t count) {
    for (int64_t i = 0; i < count; ++i) memcpy(out_ + i, &value, sizeof(value));
    advance(count);
  }

 private:
  HD void row(const uint8_t* bits, int64_t length) {
    constexpr int kLanes = kWide<T>;
    int64_t i = 0;
    for (; i + kWord <= length; i += kWord) {
#pragma GCC unroll 8
      for (int k = 0; k < kWord; k += kLanes) groups<kLanes>(i + k, bits);
    }
    for (; i + kLanes <= length; i += kLanes) groups<kLanes>(i, bits);
    if (kLanes > kGroup)
      for (; i + kGroup <= length; i += kGroup) groups<kGroup>(i, bits);
    if (i < length) last(i, length - i, uses_bits(kRule) ? bits[i / kGroup] : 0);
    advance(length);
  }

  // Rows of kFull groups and some elements, all but the last. Returns how many.
  template <int kFull>
  HD int64_t short_rows(const uint8_t* bits, int64_t rows, int64_t length) {
    int64_t row = 0;
    for (; row < rows && left_ >= (kFull + 1) * kGroup; ++row) {
#pragma GCC unroll 4
      for (int k = 0; k <= kFull; ++k) groups<kGroup>(k * kGroup, bits);
      advance(length);
      if (uses_bits(kRule)) bits += kFull + 1;
    }
    return row;
  }

  template <int kCount>
  HD void groups(int64_t i, const uint8_t* bits) {
    lanes<kCount>(i, uses_bits(kRule) ? load_bits<kCount>(bits + i / kGroup) : 0);
  }

  template <int kCount>
  HD void lanes(int64_t i, uint64_t bits) {
    apply<kCount>(grad_ + i, out_ + i, bits);
  }

  template <int kCount>
  static HD void apply(const Value<T>* from, Value<T>* to, uint64_t bits) {
    SignLanes<T, kCount> x;
    x.load(from);
    if (uses_sign(kRule)) x.clamp();
    if (uses_bits(kRule)) x.keep(static_cast<uint32_t>(bits));
    x.store(to);
  }

  // Less than a group.
  HD void last(int64_t i, int64_t count, uint64_t bits) {
    if (left_ - i >= kGroup) return lanes<kGroup>(i, bits);
    Value<T> x[kGroup]{};
    memcpy(x, grad_ + i, static_cast<size_t>(count) * sizeof(T));
    apply<kGroup>(x, x, bits);
    memcpy(out_ + i, x, static_cast<size_t>(count) * sizeof(T));
  }

  HD void advance(int64_t count) {
    grad_ += count;
    out_ += count;
    left_ -= count;
  }

  const Value<T>* grad_;
  Value<T>* out_;
  int64_t left_;
};

template <typename T, Rule kRule>
void rectify_rows(const void* grad, void* out, const uint8_t* bits, int64_t rows, int64_t length) {
  Sweep<T, kRule>(grad, out, 0, rows * length).rows(bits, rows, length);
}

// Lines [begin, end) of windows.
template <typename T, Rule kRule>
void rectify_lines(const RectifyParams& p, int64_t begin, int64_t end) {
  const Rectify rectify(p);
  const int64_t length = rectify.line_length(), width = p.channels_last ? p.c : 1;
  const bool padded = p.c % kGroup != 0;
  const uint8_t* const stop = rectify.end_of_bits();
  Sweep<T, kRule> sweep(p.grad, p.out, begin * length, end * length);
  Rectify::Place place = rectify.place(begin);
  Rectify::Window window = rectify.window(place.n);
  for (int64_t i = begin; i < end; ++i) {
    const Rectify::Line line = rectify.line(window, place);
    const Interval in = line.inside, held = line.held;
    if (held.lo < held.hi) {
      sweep.fill(0, in.lo * width);
      sweep.fill(Pattern<T>::kNaN, (held.lo - in.lo) * width);
      const int64_t cells = held.hi - held.lo, at = held.lo + line.shift;
      if (!p.channels_last) {
        sweep.cells(line.bits, at, cells, stop);
      } else if (uses_bits(kRule)) {
        sweep.rows(line.bits + at * groups_of(p.c), padded ? cells : 1,
                   padded ? width : cells * width);
      } else {
        sweep.rows(nullptr, 1, cells * width);
      }
      sweep.fill(Pattern<T>::kNaN, (in.hi - held.hi) * width);
    } else {
      sweep.fill(0, in.lo * width);
      sweep.fill(Pattern<T>::kNaN, (in.hi - in.lo) * width);
    }
    sweep.fill(0, (p.size[2] - in.hi) * width);
    const int64_t n = place.n;
    rectify.next(&place);
    if (place.n != n && i + 1 < end) window = rectify.window(place.n);
  }
}

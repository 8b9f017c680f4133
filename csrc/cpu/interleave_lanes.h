// The inner loops of deconv_interleave. See cpu/each_isa.h.

// 4x4 elements: to[j][i] = from[i][j].
template <typename T>
HD void transpose_block(const T* const (&from)[4], T* const (&to)[4], bool relu) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Four v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    memcpy(&v[i], from[i], sizeof(Four));
    if (relu) v[i] = v[i] < 0 ? Four{} : v[i];
  }
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Index Lanes __attribute__((vector_size(4 * sizeof(T))));
  const Four a = __builtin_shuffle(v[0], v[1], Lanes{0, 4, 1, 5});
  const Four b = __builtin_shuffle(v[0], v[1], Lanes{2, 6, 3, 7});
  const Four c = __builtin_shuffle(v[2], v[3], Lanes{0, 4, 1, 5});
  const Four d = __builtin_shuffle(v[2], v[3], Lanes{2, 6, 3, 7});
  const Four out[4] = {
      __builtin_shuffle(a, c, Lanes{0, 1, 4, 5}), __builtin_shuffle(a, c, Lanes{2, 3, 6, 7}),
      __builtin_shuffle(b, d, Lanes{0, 1, 4, 5}), __builtin_shuffle(b, d, Lanes{2, 3, 6, 7})};
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) memcpy(to[j], &out[j], sizeof(Four));
}

// What becomes of an element: the bias, then max(y, 0).
template <typename T>
HD T finished(T value, Widened<T> bias, bool relu) {
  const Widened<T> y = widen(value) + bias;
  T result;
  backsight::store(relu ? rectified(y) : y, &result);
  return result;
}

// kStride rows of cells, one element of each after the other.
template <typename T, int kStride>
HD void zip_cells(const T* const* from, T* to, int64_t count, Widened<T> bias, bool relu) {
  const T* rows[kStride];
  for (int r = 0; r < kStride; ++r) rows[r] = from[r];
  for (int64_t a = 0; a < count; ++a)
#pragma GCC unroll 4
    for (int r = 0; r < kStride; ++r) to[a * kStride + r] = finished(rows[r][a], bias, relu);
}

// Columns of one output row, of channels that lie apart: row c is `columns` elements.
template <typename T>
HD void zip_row(const DeconvInterleaveParams& p, const T* from, T* to, Widened<T> bias) {
  const int64_t stride = p.stride[2], columns = p.out.size[2];
  const auto one = [&](int64_t o) {
    const int64_t place = o + p.first[2];
    to[o] = finished(from[place / stride * p.cell[2] + place % stride * p.phase[2]], bias, p.relu);
  };
  int64_t o = 0;
  if (p.cell[2] == 1 && stride <= 4) {
    for (; o < columns && (o + p.first[2]) % stride != 0; ++o) one(o);
    const T* rows[4];
    for (int64_t r = 0; r < stride; ++r)
      rows[r] = from + (o + p.first[2]) / stride + r * p.phase[2];
    const int64_t count = (columns - o) / stride;
    switch (stride) {
      case 1: zip_cells<T, 1>(rows, to + o, count, bias, p.relu); break;
      case 2: zip_cells<T, 2>(rows, to + o, count, bias, p.relu); break;
      case 3: zip_cells<T, 3>(rows, to + o, count, bias, p.relu); break;
      default: zip_cells<T, 4>(rows, to + o, count, bias, p.relu);
    }
    o += count * stride;
  }
  for (; o < columns; ++o) one(o);
}

// Parts [begin, end) of output rows: kChannels channels each.
template <typename T>
void interleave_rows(const DeconvInterleaveParams& p, int64_t begin, int64_t end) {
  const View& out = p.out;
  const bool last = channels_last(out);
  const int64_t parts = last ? 1 : (out.c + kChannels - 1) / kChannels, columns = out.size[2];
  const T* const bias = reinterpret_cast<const T*>(p.bias);
  std::vector<int64_t> at(static_cast<size_t>(columns));  // of each column, from the row's start
  for (int64_t o = 0; o < columns; ++o) {
    const int64_t place = o + p.first[2];
    at[o] = place / p.stride[2] * p.cell[2] + place % p.stride[2] * p.phase[2];
  }
  for (int64_t task = begin; task < end; ++task) {
    int64_t rest = task / parts;
    const int64_t channel = task % parts * kChannels;
    const int64_t stop = last ? out.c : min64(out.c, channel + kChannels);
    const int64_t oy = rest % out.size[1];
    rest /= out.size[1];
    const int64_t oz = rest % out.size[0], n = rest / out.size[0];
    const int64_t z = oz + p.first[0], y = oy + p.first[1];
    const T* const from = reinterpret_cast<const T*>(p.phases) + n * p.phases_n +
                          z / p.stride[0] * p.cell[0] + z % p.stride[0] * p.phase[0] +
                          y / p.stride[1] * p.cell[1] + y % p.stride[1] * p.phase[1];
    T* const to =
        reinterpret_cast<T*>(out.data) + n * out.stride_n + oz * out.stride[0] + oy * out.stride[1];
    if (last) {
      for (int64_t o = 0; o < columns; ++o) {
        const T* const source = from + at[o];
        T* const target = to + o * out.stride[2];
        if (p.channel == 1 && !bias && !p.relu) {
          memcpy(target, source, static_cast<size_t>(out.c) * sizeof(T));
        } else if (p.channel == 1 && !bias) {
          for (int64_t c = 0; c < out.c; ++c) target[c] = finished(source[c], 0, p.relu);
        } else {
          for (int64_t c = 0; c < out.c; ++c)
            target[c] = finished(source[c * p.channel], bias ? widen(bias[c]) : 0, p.relu);
        }
      }
      continue;
    }
    int64_t c = channel;
    if constexpr (sizeof(T) >= 4) {
      if (p.channel == 1 && !bias) {
        for (; c + 4 <= stop; c += 4) {
          T* const rows = to + c * out.stride_c;
          int64_t o = 0;
          for (; o + 4 <= columns; o += 4) {
            const T* const sources[4] = {from + at[o] + c, from + at[o + 1] + c,
                                         from + at[o + 2] + c, from + at[o + 3] + c};
            T* const targets[4] = {rows + o, rows + o + out.stride_c, rows + o + 2 * out.stride_c,
                                   rows + o + 3 * out.stride_c};
            transpose_block(sources, targets, p.relu);
          }
          for (; o < columns; ++o)
            for (int64_t k = 0; k < 4; ++k)
              rows[k * out.stride_c + o] = finished(from[at[o] + c + k], 0, p.relu);
        }
      }
    }
    for (; c < stop; ++c)
      zip_row(p, from + c * p.channel, to + c * out.stride_c, bias ? widen(bias[c]) : 0);
  }
}

#include "core/max_unpool.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/pool_rows.h"
#include "cpu/switches.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

// The windows over a cell, or over cells side by side, in raster order.
struct Window {
  int64_t y, switches;  // elements from somewhere
  int offset;           // of the cell in the window
};
struct Windows {
  int64_t count = 0;
  Window list[kByteOffsets];

  void add(int64_t y, int64_t switches, int offset) { list[count++] = {y, switches, offset}; }
};

template <typename T, typename Switch>
struct Spread {
  const Windows* windows;
  const T* y;
  const Switch* switches;
  bool set, relu;
};

#define BACKSIGHT_VECTOR_CODE "cpu/max_unpool_lanes.h"
#include "cpu/each_isa.h"

// `count` cells, at least 16 bytes of them.
template <typename T, typename Switch>
void spread(const Spread<T, Switch>& s, int64_t count, T* to) {
#if BACKSIGHT_HAS_TARGETS
  const int64_t bytes = std::min<int64_t>(vector_bytes(), count * int64_t{sizeof(T)});
  if (bytes >= 64) return vectors64::spread(s, count, to);
  if (bytes >= 32) return vectors32::spread(s, count, to);
#endif
  vectors16::spread(s, count, to);
}

Cover windows_over(const MaxUnpoolParams& p, int64_t b, int axis, int64_t x) {
  return backsight::windows_over(p.pool, axis, x + first_cell(p, b, axis),
                                 windows_held(p, b, axis));
}

// Rows [begin, end) of an x whose channels are last; a vector holds channels.
template <typename T, bool kStream>
void unpool_pixels(const MaxUnpoolParams& p, int64_t begin, int64_t end) {
  const View &x = p.x, &y = p.y, &v = p.switches;
  std::vector<Cover> across(static_cast<size_t>(x.size[2]));
  std::vector<T> pixel(static_cast<size_t>(x.c));
  Writer<kStream> writer(x.data + begin * x.size[2] * x.c * int64_t{sizeof(T)});
  int64_t before = -1;
  Windows windows;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t slice = divide(i, x.size[1]), n = divide(slice, x.size[0]);
    const Cover depth = windows_over(p, n, 0, slice - n * x.size[0]);
    const Cover height = windows_over(p, n, 1, i - slice * x.size[1]);
    if (before < 0 || (p.base_index && n != before))
      for (int64_t at = 0; at < x.size[2]; ++at)
        across[static_cast<size_t>(at)] = windows_over(p, n, 2, at);
    before = n;
    Spread<T, uint8_t> s{&windows, reinterpret_cast<const T*>(y.data) + n * y.stride_n,
                         reinterpret_cast<const uint8_t*>(v.data) + map_of(p, n) * v.stride_n,
                         p.set, p.relu};
    const int64_t z_at = first_window(p, n, 0), y_at = first_window(p, n, 1);
    const int64_t x_at = first_window(p, n, 2);
    T* to = reinterpret_cast<T*>(x.data) + i * x.size[2] * x.c;
    for (int64_t at = 0; at < x.size[2]; ++at, to += x.c) {
      const Cover width = across[static_cast<size_t>(at)];
      windows.count = 0;
      for (int d = 0; d < depth.count; ++d) {
        const int64_t oz = depth.o + d * p.pool.window_step[0];
        const int64_t kd = depth.k - d * p.pool.cell_step[0];
        for (int h = 0; h < height.count; ++h) {
          const int64_t oy = height.o + h * p.pool.window_step[1];
          const int64_t kh = height.k - h * p.pool.cell_step[1];
          for (int w = 0; w < width.count; ++w) {
            const int64_t ox = width.o + w * p.pool.window_step[2];
            const int64_t kw = width.k - w * p.pool.cell_step[2];
            windows.add(
                (oz - z_at) * y.stride[0] + (oy - y_at) * y.stride[1] + (ox - x_at) * y.stride[2],
                oz * v.stride[0] + oy * v.stride[1] + ox * v.stride[2],
                static_cast<int>(offset_of(p.pool, kd, kh, kw)));
          }
        }
      }
      spread(s, x.c, kStream ? pixel.data() : to);
      if (kStream)
        writer.template copy<false>(reinterpret_cast<const char*>(pixel.data()),
                                    x.c * int64_t{sizeof(T)});
    }
  }
  if (kStream) writer.finish();
}

// Any case, element by element.
template <bool kChannelsLast>
void unpool_elements(const MaxUnpoolParams& p, int64_t begin, int64_t end) {
  with_switch_type(p.switch_bytes, [&](auto s) {
    with_element(p.dtype, [&](auto t) {
      for (int64_t i = begin; i < end; ++i)
        max_unpool_element<decltype(t), decltype(s), kChannelsLast>(p, i);
    });
  });
}

// Whether the switches of elements [begin, end) of y are right.
bool are_right(const MaxUnpoolParams& p, int64_t begin, int64_t end) {
  bool right = true;
  with_switch_type(p.switch_bytes, [&](auto s) {
    using Switch = decltype(s);
    const bool last = channels_last(p.y);
    for (int64_t i = begin; i < end; ++i)
      right &= last ? switch_is_right<Switch, true>(p, i) : switch_is_right<Switch, false>(p, i);
  });
  return right;
}

}  // namespace

void max_unpool(const MaxUnpoolParams& p, int threads) {
  check_base_index("max_unpool", p);
  const bool last = channels_last(p.x);
  const int64_t count = elements_of(p.x), element = element_size(p.dtype);
  Errors errors;
  parallel_chunks(elements_of(p.y), elements_of(p.y) * 4, threads,
                  [&](int64_t begin, int64_t end) { errors.found(!are_right(p, begin, end)); });
  errors.report("max_unpool", p);
  if (count == 0) return;
  with_element(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (last && p.y.stride_c == 1 && p.switches.stride_c == 1 && p.switch_bytes == 1 &&
        p.x.c * element >= 16) {
      const bool stream = count * element >= kStreamBytes;
      parallel_chunks(p.x.n * p.x.size[0] * p.x.size[1], count * element, threads,
                      [&](int64_t begin, int64_t end) {
                        stream ? unpool_pixels<T, true>(p, begin, end)
                               : unpool_pixels<T, false>(p, begin, end);
                      });
    } else {
      parallel_chunks(count, count * element, threads, [&](int64_t begin, int64_t end) {
        last ? unpool_elements<true>(p, begin, end) : unpool_elements<false>(p, begin, end);
      });
    }
  });
}

}  // namespace backsight::cpu

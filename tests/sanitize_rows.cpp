// Steps the body of the CUDA row kernels, core/rows.h, on the host: every thread of every block, in
// all template instances, on random arguments, and compares with the CPU kernels bit for bit.
// Arrays are allocated exactly, so that AddressSanitizer sees any access beyond them.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "core/occlude.h"
#include "core/preactivation.h"
#include "core/rows.h"
#include "core/splice.h"

namespace {

using namespace backsight;

std::mt19937_64 rng(1);

int64_t draw(int64_t low, int64_t high) {  // inclusive
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

struct Array {
  View view;
  std::vector<uint64_t> storage;  // words, so that it is aligned to 16 like any allocation

  Array(int64_t n, int64_t c, const int64_t (&size)[kAxes], bool channels_last, int64_t element) {
    const int64_t cells = size[0] * size[1] * size[2];
    storage.resize(static_cast<size_t>((n * c * cells * element + 7) / 8));
    for (auto& word : storage) word = rng();
    view.data = reinterpret_cast<char*>(storage.data());
    view.n = n;
    view.c = c;
    view.stride_n = c * cells;
    view.stride_c = channels_last ? 1 : cells;
    int64_t step = channels_last ? c : 1;
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      view.size[axis] = size[axis];
      view.stride[axis] = step;
      step *= size[axis];
    }
  }
};

// All threads of the launch that csrc/cuda/rows.cuh would make.
template <typename T, bool kChannelsLast, int kVector, typename Rows>
void step(const Rows& rows, int64_t count, int64_t threads) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t t = 0; t < threads; ++t) write_row<T, kChannelsLast, kVector>(rows, r, t, threads);
}

template <typename T, bool kChannelsLast, typename Rows>
void step(const Rows& rows) {
  const View& out = rows.out();
  const int64_t channels = kChannelsLast ? out.c : 1;
  const int64_t length = out.size[2] * channels;
  const int64_t count = out.n * (out.c / channels) * out.size[0] * out.size[1];
  if (count * length == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  const int64_t threads = int64_t{1} << draw(0, 3);
  if (length % kVector == 0 && draw(0, 3) > 0) {
    step<T, kChannelsLast, kVector>(rows, count, threads);
  } else {
    step<T, kChannelsLast, 1>(rows, count, threads);
  }
}

template <typename Rows>
void step(const Rows& rows) {
  const bool last = channels_last(rows.out());
  switch (rows.element_size()) {
    case 2: return last ? step<uint16_t, true>(rows) : step<uint16_t, false>(rows);
    case 4: return last ? step<uint32_t, true>(rows) : step<uint32_t, false>(rows);
    default: return last ? step<uint64_t, true>(rows) : step<uint64_t, false>(rows);
  }
}

// Writes `out` by the stepped body and by the CPU kernel.
template <typename Rows, typename Params>
void compare(Params& p, Array& out, void (*kernel)(const Params&, int), const char* op, int round) {
  Array stepped = out;
  p.out = stepped.view;
  p.out.data = reinterpret_cast<char*>(stepped.storage.data());
  step(Rows(p));
  p.out = out.view;
  kernel(p, static_cast<int>(draw(1, 3)));
  if (out.storage != stepped.storage) {
    std::fprintf(stderr, "%s: expected the CPU kernel's output, got another in round %d\n", op,
                 round);
    std::exit(1);
  }
}

std::vector<int64_t> integers(int64_t count, int64_t low, int64_t high) {
  std::vector<int64_t> values(static_cast<size_t>(count));
  for (auto& v : values) v = draw(low, high);
  return values;
}

void draw_sizes(int64_t (&size)[kAxes], int dims, int64_t low, int64_t high) {
  for (int axis = 0; axis < kAxes; ++axis) size[axis] = axis < kAxes - dims ? 1 : draw(low, high);
}

void splice_round(int round) {
  SpliceParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.dims = static_cast<int>(draw(1, 3));
  const int64_t element = element_size(p.dtype);
  const int64_t windows = draw(0, 4), channels = draw(1, 17);
  int64_t tile[kAxes], cut[kAxes], size[kAxes];
  draw_sizes(tile, p.dims, 0, 8);
  draw_sizes(cut, p.dims, 0, 5);
  draw_sizes(size, p.dims, 0, 9);
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool padded = axis < kAxes - p.dims;
    p.base_at[axis] = padded ? 0 : draw(-2, 3);
    p.extent[axis] = padded ? 1 : draw(0, 10);
  }
  const bool last = draw(0, 1);
  Array base(draw(0, 3), channels, tile, draw(0, 1), element);
  Array patch(windows, channels, cut, draw(0, 1), element);
  Array out(windows, channels, size, last, element);
  const auto index = integers(windows, -1, base.view.n);
  const auto patch_at = integers(windows * p.dims, -3, 9);
  const auto window_at = integers(windows * p.dims, -4, 9);
  p.base = base.view;
  p.patch = patch.view;
  p.base_index = index.data();
  p.patch_at = patch_at.data();
  p.window_at = window_at.data();
  p.outside = 0.25;
  compare<SpliceRows>(p, out, cpu::splice, "splice", round);
}

void occlude_round(int round) {
  OccludeParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.dims = static_cast<int>(draw(1, 3));
  const int64_t element = element_size(p.dtype);
  const int64_t images = draw(0, 3), channels = draw(1, 17);
  int64_t size[kAxes];
  draw_sizes(size, p.dims, 0, 9);
  p.copies = draw(0, 4);
  const bool last = draw(0, 1);
  Array image(images, channels, size, draw(0, 1), element);
  Array baseline(images, channels, size, draw(0, 1), element);
  Array out(images * p.copies, channels, size, last, element);
  const auto boxes = integers(p.copies * 2 * p.dims, -3, 12);
  p.image = image.view;
  p.baseline = baseline.view;
  if (draw(0, 1)) {  // a constant
    p.baseline.stride_n = p.baseline.stride_c = 0;
    for (auto& stride : p.baseline.stride) stride = 0;
  }
  p.boxes = boxes.data();
  compare<OccludeRows>(p, out, cpu::occlude, "occlude", round);
}

// All maps, one launch each.
template <typename T, bool kChannelsLast>
void step(const PreactivationParams& p) {
  int64_t first = 0;
  for (const View& map : p.maps) {
    const PreactivationSlice<T> slice(p, map, first);
    const View& out = slice.out;
    first += map.c;
    const int64_t cells = out.n * out.size[0] * out.size[1];
    const int64_t count = cells * (kChannelsLast ? out.size[2] : out.c);
    const int64_t length = kChannelsLast ? out.c : out.size[2];
    if (count * length == 0) continue;
    const int64_t threads = int64_t{1} << draw(0, 3);
    if (rows_are_aligned(slice.in, kChannelsLast, sizeof(T)) &&
        rows_are_aligned(out, kChannelsLast, sizeof(T))) {
      step<T, kChannelsLast, 16 / sizeof(T)>(slice, count, threads);
    } else {
      step<T, kChannelsLast, 1>(slice, count, threads);
    }
  }
}

// A map without its last channels, cells or entries, so that it lies in a larger array.
View cut(View v) {
  if (draw(0, 1)) v.n -= v.n > 0;
  if (draw(0, 1)) v.c -= v.c > 0;
  for (auto& size : v.size) size -= size > 1 && draw(0, 1);
  return v;
}

void preactivation_round(int round) {
  PreactivationParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  const int64_t element = element_size(p.dtype);
  const int dims = static_cast<int>(draw(1, 3));
  int64_t size[kAxes];
  draw_sizes(size, dims, 0, 9);
  const bool last = draw(0, 1);
  const auto channels = [&] { return draw(0, 1) ? draw(0, 19) : 8 * draw(0, 4); };
  std::vector<Array> maps;
  maps.reserve(4);  // views point into them
  maps.emplace_back(draw(0, 3), channels(), size, draw(0, 3) ? last : !last, element);
  const View first = cut(maps[0].view);
  p.maps.push_back(first);
  for (int64_t i = draw(0, 3); i > 0; --i) {
    int64_t larger[kAxes];
    for (int axis = 0; axis < kAxes; ++axis) larger[axis] = first.size[axis] + draw(0, 1);
    maps.emplace_back(first.n, channels(), larger, draw(0, 3) ? last : !last, element);
    View map = maps.back().view;
    for (int axis = 0; axis < kAxes; ++axis) map.size[axis] = first.size[axis];
    p.maps.push_back(map);
  }
  int64_t total = 0;
  for (const View& map : p.maps) total += map.c;
  Array out(first.n, total, first.size, last, element);
  Array stepped = out;
  // Finite: of two NaNs it is the compiler's choice which one comes out.
  std::vector<double> wide(static_cast<size_t>(2 * total));
  for (auto& v : wide) v = static_cast<double>(draw(-99, 99)) / 16;
  std::vector<float> narrow(wide.begin(), wide.end());
  const bool doubles = p.dtype == DType::kFloat64;
  p.scale = doubles ? reinterpret_cast<const char*>(wide.data())
                    : reinterpret_cast<const char*>(narrow.data());
  p.shift = p.scale + total * (doubles ? 8 : 4);
  p.out = stepped.view;
  p.out.data = reinterpret_cast<char*>(stepped.storage.data());
  with_element(p.dtype, [&](auto one) {
    using T = decltype(one);
    return channels_last(p.out) ? step<T, true>(p) : step<T, false>(p);
  });
  p.out = out.view;
  cpu::preactivation(p, static_cast<int>(draw(1, 3)));
  if (out.storage != stepped.storage) {
    std::fprintf(stderr,
                 "preactivation: expected the CPU kernel's output, got another in round %d\n",
                 round);
    std::exit(1);
  }
}

}  // namespace

int main() {
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) {
    splice_round(round);
    occlude_round(round);
    preactivation_round(round);
  }
  std::printf("rows: %d rounds of each op, device bodies equal the CPU kernels\n", kRounds);
}

// Steps the bodies of the CUDA kernels, core/rows.h and the elements of pools, on the host: every
// thread of every block, in all template instances, on random arguments, and compares with the CPU
// kernels, in vectors of every size, bit for bit.
// Arrays are allocated exactly, so that AddressSanitizer sees any access beyond them.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "core/max_pool.h"
#include "core/max_unpool.h"
#include "core/occlude.h"
#include "core/preactivation.h"
#include "core/rectify.h"
#include "core/relu.h"
#include "core/rows.h"
#include "core/splice.h"
#include "core/subpixel_deconv.h"
#include "core/unpool_deconv.h"
#include "cpu/isa.h"

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

template <typename T>
void expect_same(const std::vector<T>& got, const std::vector<T>& expected, const char* op,
                 int round) {
  if (got == expected) return;
  std::fprintf(stderr, "%s: expected the CPU kernel's output, got another in round %d\n", op,
               round);
  std::exit(1);
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
  expect_same(stepped.storage, out.storage, op, round);
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
  expect_same(stepped.storage, out.storage, "preactivation", round);
}

std::vector<uint8_t> bytes(int64_t count) {
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (auto& v : values) v = static_cast<uint8_t>(rng());
  return values;
}

// Elements are random bits, so NaNs are among them, and signs are even; zeros are put in by hand.
void relu_round(int round) {
  ReluParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.rows = draw(0, 9);
  p.length = draw(0, 3) > 0 ? draw(0, 40) : 8 * draw(0, 5);
  const int64_t size[kAxes] = {1, 1, p.length};
  Array x(p.rows, 1, size, false, element_size(p.dtype));
  for (auto& word : x.storage)
    if (draw(0, 3) == 0) word = draw(0, 1) ? 0 : 0x8000000080008000u;
  Array y = x, stepped = x;
  auto bits = bytes(groups_of(p)), stepped_bits = bytes(groups_of(p));
  p.x = reinterpret_cast<const char*>(x.storage.data());
  p.y = reinterpret_cast<char*>(y.storage.data());
  p.bits = bits.data();
  cpu::relu(p, static_cast<int>(draw(1, 3)));
  p.y = reinterpret_cast<char*>(stepped.storage.data());
  p.bits = stepped_bits.data();
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t i = 0; i < groups_of(p); ++i) {
      if (whole_groups(p) && draw(0, 3) > 0) {
        relu_group<T, true>(p, i);
      } else {
        relu_group<T, false>(p, i);
      }
    }
  });
  expect_same(y.storage, stepped.storage, "relu", round);
  expect_same(bits, stepped_bits, "relu", round);
  // In place.
  p.x = p.y = reinterpret_cast<char*>(x.storage.data());
  cpu::relu(p, 1);
  expect_same(x.storage, y.storage, "relu", round);
}

void rectify_round(int round) {
  RectifyParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.rule = static_cast<Rule>(draw(0, 2));
  p.dims = static_cast<int>(draw(1, 3));
  p.channels_last = draw(0, 1);
  p.n = draw(0, 4);
  p.c = draw(1, 18);
  draw_sizes(p.size, p.dims, 0, 18);
  const bool windowed = draw(0, 2) > 0;
  p.maps = windowed ? draw(0, 3) : p.n;
  draw_sizes(p.tile, p.dims, 0, 18);
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool padded = axis < kAxes - p.dims;
    if (!windowed) p.tile[axis] = p.size[axis];
    p.base_at[axis] = padded || !windowed ? 0 : draw(-2, 3);
    p.extent[axis] = padded ? 1 : windowed ? draw(0, 20) : p.size[axis];
  }
  Array grad(p.n, p.c, p.size, p.channels_last, element_size(p.dtype));
  Array out = grad, stepped = grad;
  const int64_t lines = p.maps * p.tile[0] * p.tile[1];
  const auto bits = bytes(p.channels_last ? lines * p.tile[2] * groups_of(p.c)
                                          : lines * p.c * groups_of(p.tile[2]));
  const auto index = integers(p.n, -1, p.maps);
  const auto window_at = integers(p.n * p.dims, -9, 18);
  p.grad = reinterpret_cast<const char*>(grad.storage.data());
  p.bits = uses_bits(p.rule) ? bits.data() : nullptr;
  p.base_index = windowed ? index.data() : nullptr;
  p.window_at = windowed ? window_at.data() : nullptr;
  p.out = reinterpret_cast<char*>(out.storage.data());
  cpu::rectify(p, static_cast<int>(draw(1, 3)));
  p.out = reinterpret_cast<char*>(stepped.storage.data());
  const Rectify rectify(p);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t line = 0; line < rectify.lines(); ++line) {
      for (int64_t group = 0; group < rectify.line_groups(); ++group) {
        if (rectify.whole_groups() && draw(0, 3) > 0) {
          rectify.group<T, true>(line, group);
        } else {
          rectify.group<T, false>(line, group);
        }
      }
    }
  });
  expect_same(out.storage, stepped.storage, "rectify", round);
}

[[noreturn]] void fail(const char* op, int round) {
  std::fprintf(stderr, "%s: expected the CPU kernel's output, got another in round %d\n", op,
               round);
  std::exit(1);
}

// Numbers of which many are equal, and infinities and NaNs.
void draw_values(Array& array, DType dtype) {
  const auto bytes = static_cast<size_t>(element_size(dtype));
  char* to = reinterpret_cast<char*>(array.storage.data());
  const size_t count = array.storage.size() * sizeof(uint64_t) / bytes;
  for (size_t i = 0; i < count; ++i) {
    const int64_t kind = draw(0, 11);
    const double value = kind == 0   ? __builtin_nan("")
                         : kind == 1 ? -__builtin_inf()
                                     : static_cast<double>(draw(-3, 3));
    const uint64_t bits = bits_of(value, dtype);
    memcpy(to + i * bytes, &bits, bytes);
  }
}

Array switch_array(const Array& y, int bytes) {
  const int64_t n = y.view.n, c = y.view.c;
  return Array(n, c, y.view.size, channels_last(y.view), bytes);
}

// All threads of the launches that csrc/cuda/max_*.cu would make.
template <bool kChannelsLast>
void step_pool(const MaxPoolParams& p) {
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      for (int64_t i = 0; i < elements_of(p.y); ++i)
        max_pool_element<decltype(t), decltype(s), kChannelsLast>(p, i);
    });
  });
}
template <bool kChannelsLast>
bool step_unpool(const MaxUnpoolParams& p, bool gather) {
  bool right = true;
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      using T = decltype(t);
      using Switch = decltype(s);
      for (int64_t i = 0; i < elements_of(p.y); ++i)
        right &= gather ? max_gather_element<T, Switch, kChannelsLast>(p, i)
                        : switch_is_right<Switch, kChannelsLast>(p, i);
      for (int64_t i = 0; !gather && i < elements_of(p.x); ++i)
        max_unpool_element<T, Switch, kChannelsLast>(p, i);
    });
  });
  return right;
}

// The CPU kernel's run: whether it found all switches right.
template <typename Kernel>
bool runs(const MaxUnpoolParams& p, const Kernel& kernel) {
  try {
    kernel(p, static_cast<int>(draw(1, 3)));
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

char* data(Array& array) { return reinterpret_cast<char*>(array.storage.data()); }

void pool_round(int round) {
  MaxPoolParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  const int dims = static_cast<int>(draw(1, 3));
  p.switch_bytes = draw(0, 4) > 0 ? 1 : draw(0, 1) ? 2 : 4;
  p.relu = draw(0, 1);
  const bool last = draw(0, 1);
  const int64_t element = element_size(p.dtype), channels = draw(1, 40);
  int64_t size[kAxes], windows[kAxes];
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool padded = axis < kAxes - dims;
    p.pool.kernel[axis] = padded ? 1 : draw(1, 4);
    p.pool.stride[axis] = padded ? 1 : draw(1, 4);
    p.pool.dilation[axis] = padded ? 1 : draw(1, 3);
    const int64_t span = (p.pool.kernel[axis] - 1) * p.pool.dilation[axis] + 1;
    p.pool.padding[axis] = padded ? 0 : draw(0, span / 2);
    size[axis] = padded ? 1 : span + draw(0, dims < 3 ? 20 : 5);
    windows[axis] = (size[axis] + 2 * p.pool.padding[axis] - span) / p.pool.stride[axis] + 1;
  }
  p.pool.set_steps();
  Array x(draw(0, 3), channels, size, last, element);
  Array y(x.view.n, channels, windows, last, element);
  draw_values(x, p.dtype);
  Array switches = switch_array(y, p.switch_bytes);
  Array stepped = y, stepped_switches = switches;
  p.x = x.view;
  p.x.data = data(x);
  p.y = y.view;
  p.switches = switches.view;
  p.y.data = data(stepped);
  p.switches.data = data(stepped_switches);
  channels_last(p.y) ? step_pool<true>(p) : step_pool<false>(p);
  p.y.data = data(y);
  p.switches.data = data(switches);
  cpu::max_pool(p, static_cast<int>(draw(1, 3)));
  if (y.storage != stepped.storage || switches.storage != stepped_switches.storage)
    fail("max_pool", round);

  // And back, with the switches found; sometimes one of them is wrong.
  MaxUnpoolParams u;
  u.dtype = p.dtype;
  u.switch_bytes = p.switch_bytes;
  u.set = draw(0, 1);
  u.relu = draw(0, 1);
  u.pool = p.pool;
  u.dims = dims;
  u.switches = p.switches;
  if (draw(0, 5) == 0 && elements_of(p.y) > 0)
    data(switches)[draw(0, elements_of(p.y) * p.switch_bytes - 1)] =
        static_cast<char>(draw(0, 255));
  int64_t count = x.view.n;
  std::vector<int64_t> index, y_at, window_at;
  if (count > 0 && draw(0, 1)) {
    count = draw(0, 4);
    draw_sizes(windows, dims, 0, 5);
    draw_sizes(size, dims, 0, 9);
    index = integers(count, 0, x.view.n - (draw(0, 9) > 0));
    y_at = integers(count * dims, -2, 5);
    window_at = integers(count * dims, -3, 8);
    index.reserve(1);  // none is not null
  }
  const bool windowed = index.capacity() > 0;
  u.base_index = windowed ? index.data() : nullptr;
  u.y_at = y_at.data();
  u.window_at = window_at.data();
  Array small(count, channels, windows, last, element), large(count, channels, size, last, element);
  draw_values(small, u.dtype);
  draw_values(large, u.dtype);
  u.x = large.view;
  u.y = small.view;
  for (const bool gather : {false, true}) {
    Array ours = gather ? small : large, theirs = ours;
    u.x.data = data(gather ? large : theirs);
    u.y.data = data(gather ? theirs : small);
    // As the kernels themselves tell whether the output's channels are last.
    const bool in_pixels = channels_last(gather ? u.y : u.x);
    bool right = in_pixels ? step_unpool<true>(u, gather) : step_unpool<false>(u, gather);
    for (int64_t b = 0; b < count; ++b) right &= has_map(u, b);  // even where y is empty
    (gather ? u.y : u.x).data = data(ours);
    if (runs(u, gather ? cpu::max_gather : cpu::max_unpool) != right)
      fail(gather ? "max_gather, of wrong switches," : "max_unpool, of wrong switches,", round);
    if (right && ours.storage != theirs.storage) fail(gather ? "max_gather" : "max_unpool", round);
  }
}

// Numbers whose sums depend on their order.
void draw_numbers(char* to, int64_t count, DType dtype) {
  const auto bytes = static_cast<size_t>(element_size(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = bits_of(static_cast<double>(draw(-999999, 999999)) / 1e6, dtype);
    memcpy(to + static_cast<size_t>(i) * bytes, &bits, bytes);
  }
}

template <typename T>
int64_t elements_in(const std::vector<T>& storage, int64_t element) {
  return static_cast<int64_t>(storage.size() * sizeof(T)) / element;
}

// A transposed convolution of a map of `size`; false if nothing is left of its output.
bool draw_deconv(Pool& pool, int64_t dims, const int64_t (&size)[kAxes],
                 int64_t (&out_size)[kAxes]) {
  draw_sizes(pool.kernel, static_cast<int>(dims), 1, dims == 1 ? 9 : 4);
  draw_sizes(pool.stride, static_cast<int>(dims), 1, 5);
  draw_sizes(pool.dilation, static_cast<int>(dims), 1, draw(0, 1) ? 1 : 3);
  if (draw(0, 9) == 0) pool.stride[2] = draw(16, 33);
  bool some = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool there = axis >= kAxes - dims;
    const int64_t most = max64(pool.stride[axis], pool.dilation[axis]) - 1;
    pool.padding[axis] = there ? draw(0, 4) : 0;
    out_size[axis] = (size[axis] - 1) * pool.stride[axis] - 2 * pool.padding[axis] +
                     (pool.kernel[axis] - 1) * pool.dilation[axis] + 1 +
                     (there ? draw(0, most) : 0);
    some = some && out_size[axis] > 0;
  }
  pool.set_steps();
  return some;
}

void deconv_round(int round) {
  SubpixelDeconvParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.relu = draw(0, 1);
  p.groups = draw(0, 2) > 0 ? 1 : draw(1, 40);
  const int64_t element = element_size(p.dtype), dims = draw(1, 3);
  const bool each = p.groups > 3 || draw(0, 1) == 0;
  const int64_t into = each ? 1 : draw(1, 3), onto = each ? 1 : draw(1, 6);
  int64_t size[kAxes], out_size[kAxes];
  do {
    draw_sizes(size, static_cast<int>(dims), 1, dims == 1 ? 40 : 6);
  } while (!draw_deconv(p.pool, dims, size, out_size));
  Array x(draw(0, 2), p.groups * into, size, draw(0, 1), element);
  Array out(x.view.n, p.groups * onto, out_size, draw(0, 1), element), stepped = out;
  const int64_t taps = p.pool.kernel[0] * p.pool.kernel[1] * p.pool.kernel[2];
  std::vector<char> weight(static_cast<size_t>(p.groups * into * onto * taps * element));
  std::vector<char> bias(static_cast<size_t>(p.groups * onto * element));
  draw_numbers(data(x), elements_in(x.storage, element), p.dtype);
  draw_numbers(weight.data(), elements_in(weight, element), p.dtype);
  draw_numbers(bias.data(), elements_in(bias, element), p.dtype);
  p.x = x.view;
  p.weight = weight.data();
  p.bias = draw(0, 1) ? bias.data() : nullptr;
  p.out = stepped.view;
  p.out.data = data(stepped);
  with_element(p.dtype, [&](auto t) {
    for (int64_t i = 0; i < elements_of(p.out); ++i) {
      if (channels_last(p.out)) {
        deconv_element<decltype(t), true>(p, i);
      } else {
        deconv_element<decltype(t), false>(p, i);
      }
    }
  });
  p.out = out.view;
  cpu::subpixel_deconv(p, static_cast<int>(draw(1, 3)));
  expect_same(stepped.storage, out.storage, "subpixel_deconv", round);
}

template <bool kChannelsLast>
void step_unpool_deconv(const UnpoolDeconvParams& p) {
  with_element(p.deconv.dtype, [&](auto t) {
    with_switch_type(p.unpool.switch_bytes, [&](auto s) {
      for (int64_t i = 0; i < elements_of(p.deconv.out); ++i)
        unpool_deconv_element<decltype(t), decltype(s), kChannelsLast>(p, i);
    });
  });
}

// With the switches that a pool finds.
void unpool_deconv_round(int round) {
  MaxPoolParams pool;
  UnpoolDeconvParams p;
  MaxUnpoolParams& u = p.unpool;
  SubpixelDeconvParams& d = p.deconv;
  const int dims = static_cast<int>(draw(1, 3));
  const bool last = draw(0, 1);
  d.groups = draw(0, 2) > 0 ? 1 : draw(1, 3);
  const int64_t channels = d.groups * draw(1, draw(0, 3) > 0 ? 6 : 40);
  pool.dtype = u.dtype = d.dtype = static_cast<DType>(draw(0, 3));
  pool.switch_bytes = u.switch_bytes = draw(0, 9) > 0 ? 1 : 2;
  pool.relu = d.relu = false;
  const int64_t element = element_size(pool.dtype);
  int64_t size[kAxes], windows[kAxes], out_size[kAxes];
  for (int axis = 0; axis < kAxes; ++axis) {
    const bool padded = axis < kAxes - dims;
    pool.pool.kernel[axis] = padded ? 1 : draw(1, 3);
    pool.pool.stride[axis] = padded ? 1 : draw(1, 3);
    pool.pool.dilation[axis] = padded ? 1 : draw(1, 2);
    const int64_t span = (pool.pool.kernel[axis] - 1) * pool.pool.dilation[axis] + 1;
    pool.pool.padding[axis] = padded ? 0 : draw(0, span / 2);
    size[axis] = padded ? 1 : span + draw(0, 5);
    windows[axis] = (size[axis] + 2 * pool.pool.padding[axis] - span) / pool.pool.stride[axis] + 1;
  }
  pool.pool.set_steps();
  Array x(draw(0, 2), channels, size, last, element);
  Array pooled(x.view.n, channels, windows, last, element);
  draw_numbers(data(x), elements_in(x.storage, element), pool.dtype);
  Array switches = switch_array(pooled, pool.switch_bytes);
  pool.x = x.view;
  pool.x.data = data(x);
  pool.y = pooled.view;
  pool.y.data = data(pooled);
  pool.switches = switches.view;
  pool.switches.data = data(switches);
  cpu::max_pool(pool, 1);

  u.set = draw(0, 1);
  u.relu = draw(0, 1);
  u.pool = pool.pool;
  u.dims = dims;
  u.switches = pool.switches;
  int64_t count = x.view.n;
  std::vector<int64_t> index, y_at, window_at;
  const bool windowed = count > 0 && draw(0, 1);
  if (windowed) {
    count = draw(0, 4);
    draw_sizes(windows, dims, 0, 5);
    draw_sizes(size, dims, 1, 7);
    index = integers(count, 0, x.view.n - 1);
    y_at = integers(count * dims, -2, 5);
    window_at = integers(count * dims, -3, 8);
    index.reserve(1);  // none is not null
  }
  u.base_index = windowed ? index.data() : nullptr;
  u.y_at = y_at.data();
  u.window_at = window_at.data();
  if (!draw_deconv(d.pool, dims, size, out_size)) return;
  const int64_t onto = draw(1, draw(0, 3) > 0 ? 5 : 70);
  const int64_t taps = d.pool.kernel[0] * d.pool.kernel[1] * d.pool.kernel[2];
  Array y(count, channels, windows, last, element);
  Array out(count, d.groups * onto, out_size, draw(0, 1), element), stepped = out;
  if (elements_of(out.view) * taps * (channels / d.groups) > 300000) return;
  std::vector<char> weight(static_cast<size_t>(channels * onto * taps * element));
  std::vector<char> bias(static_cast<size_t>(d.groups * onto * element));
  draw_numbers(data(y), elements_in(y.storage, element), d.dtype);
  draw_numbers(weight.data(), elements_in(weight, element), d.dtype);
  draw_numbers(bias.data(), elements_in(bias, element), d.dtype);
  u.y = y.view;
  u.y.data = data(y);
  u.x = Array(count, channels, size, last, 0).view;
  u.x.data = nullptr;
  d.x = u.x;
  d.weight = weight.data();
  d.bias = draw(0, 1) ? bias.data() : nullptr;
  const bool turned = draw(0, 1);
  p.weight_input = onto * taps;
  p.weight_channel = turned ? 1 : taps;
  p.weight_tap = turned ? onto : 1;
  d.out = stepped.view;
  d.out.data = data(stepped);
  channels_last(d.out) ? step_unpool_deconv<true>(p) : step_unpool_deconv<false>(p);
  d.out = out.view;
  d.out.data = data(out);
  cpu::unpool_deconv(p, static_cast<int>(draw(1, 3)));
  expect_same(stepped.storage, out.storage, "unpool_deconv", round);
}

// Against a loop over the outputs.
void interleave_round(int round) {
  DeconvInterleaveParams p;
  p.dtype = static_cast<DType>(draw(0, 3));
  p.relu = draw(0, 1);
  const int64_t element = element_size(p.dtype), dims = draw(1, 3), channels = draw(1, 70);
  int64_t size[kAxes], step = 1, cells[kAxes];
  draw_sizes(size, static_cast<int>(dims), 1, 9);
  draw_sizes(p.stride, static_cast<int>(dims), 1, 5);
  const bool last = draw(0, 1), each_apart = draw(0, 1);
  for (int axis = 0; axis < kAxes; ++axis) {
    p.first[axis] = axis < kAxes - dims ? 0 : draw(0, 6);
    cells[axis] = (size[axis] - 1 + p.first[axis]) / p.stride[axis] + 1;
  }
  // Channels, then phases, then cells from the inside out; or cells, phases, channels.
  if (!each_apart) {
    p.channel = step;
    step *= channels;
  }
  for (const bool phases : {!each_apart, each_apart}) {
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      (phases ? p.phase : p.cell)[axis] = step;
      step *= phases ? p.stride[axis] : cells[axis];
    }
  }
  if (each_apart) {
    p.channel = step;
    step *= channels;
  }
  p.phases_n = step;
  const int64_t count = draw(0, 2);
  std::vector<char> phases(static_cast<size_t>(count * step * element));
  std::vector<char> bias(static_cast<size_t>(channels * element));
  draw_numbers(phases.data(), count * step, p.dtype);
  draw_numbers(bias.data(), channels, p.dtype);
  p.phases = phases.data();
  p.bias = draw(0, 1) ? bias.data() : nullptr;
  Array out(count, channels, size, last, element), expected = out;
  p.out = expected.view;
  p.out.data = data(expected);
  with_element(p.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < count * channels * size[0] * size[1] * size[2]; ++i) {
      int64_t rest = i, from = 0, to = 0;
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const int64_t o = rest % size[axis], place = o + p.first[axis];
        from += place / p.stride[axis] * p.cell[axis] + place % p.stride[axis] * p.phase[axis];
        to += o * p.out.stride[axis];
        rest /= size[axis];
      }
      const int64_t c = rest % channels, n = rest / channels;
      from += n * p.phases_n + c * p.channel;
      to += n * p.out.stride_n + c * p.out.stride_c;
      auto value = widen(reinterpret_cast<const T*>(p.phases)[from]);
      if (p.bias) value += widen(reinterpret_cast<const T*>(p.bias)[c]);
      store(p.relu ? rectified(value) : value, reinterpret_cast<T*>(p.out.data) + to);
    }
  });
  p.out = out.view;
  cpu::deconv_interleave(p, static_cast<int>(draw(1, 3)));
  expect_same(expected.storage, out.storage, "deconv_interleave", round);
}

}  // namespace

int main() {
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) {
    cpu::limit_vector_bytes(16 << draw(0, 2));
    splice_round(round);
    occlude_round(round);
    preactivation_round(round);
    pool_round(round);
    relu_round(round);
    rectify_round(round);
    deconv_round(round);
    interleave_round(round);
    unpool_deconv_round(round);
  }
  std::printf("rows: %d rounds of each op, device bodies equal the CPU kernels\n", kRounds);
}

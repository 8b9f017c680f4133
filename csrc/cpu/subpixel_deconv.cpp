#include "core/subpixel_deconv.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace backsight::cpu {
namespace {

constexpr int64_t kMostOut = 4;  // output channels at a time

// Two ways, both with the same sums in the same order:
//
// Tiles. All phases of a row side by side: with every column of x repeated `stride` times, tap m of
// each phase is one run of memory, times a filter that repeats every `stride` columns. So rows need
// no interleaving, and few channels fill the vectors. A tile is some columns of some rows of one
// group, few enough that the repeated columns of all its input channels stay in the cache.
//
// Pixels, where channels lie side by side and each is a group: vectors of channels.

template <typename W>
struct DeconvTiles {
  int64_t into, onto;         // channels of a group
  int64_t taps;               // of a phase along a row; the last need not be there
  bool repeats;               // a vector is whole repetitions of the filter
  int64_t pattern;            // values held of the filter that repeats
  int64_t filter;             // values of weights for one pair of channels
  std::vector<W> weights;     // (O, into, depth, height, taps, pattern)
  std::vector<W> mask;        // (pattern,) all bits set where a phase has a last tap
  int64_t width, height;      // of a tile
  int64_t across, down;       // tiles
  int64_t most_rows, length;  // rows of x for a tile, and their repeated columns
};

// One output row of a tile: `count` rows of x, each with `taps` taps, of `channels` channels.
template <typename W>
struct Strip {
  const W* rows;
  int64_t rows_channel, channels;
  const W* filter;
  int64_t filter_channel, filter_out;
  const int64_t *row_at, *filter_at;  // values from rows and from filter to each row
  int64_t count, taps, stride, pattern;
  bool repeats, relu;
  int64_t phase;  // of the strip's first column
  const W *mask, *bias;
  W* out;
  int64_t out_channel, room;  // columns that may be written
};

// One output row, or a part, of pixels.
template <typename T>
struct PixelRow {
  const T* const* rows;              // of x that it meets
  const Widened<T>* const* filters;  // of each, (kernel, channels)
  int64_t count, channels, stride, stride_x, stride_out;
  const T* bias;
  bool relu;
  T* out;
};

#define BACKSIGHT_VECTOR_CODE "cpu/deconv_lanes.h"
#include "cpu/each_isa.h"

template <typename T, typename Tiles>
void run_tiles(const SubpixelDeconvParams& p, const Tiles& tiles, int64_t begin, int64_t end) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::deconv_tiles<T>(p, tiles, begin, end);
  if (vector_bytes() >= 32) return vectors32::deconv_tiles<T>(p, tiles, begin, end);
#endif
  vectors16::deconv_tiles<T>(p, tiles, begin, end);
}

template <typename T>
void run_pixels(const SubpixelDeconvParams& p, const Widened<T>* weights, int64_t width,
                int64_t begin, int64_t end) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::deconv_pixel_rows<T>(p, weights, width, begin, end);
  if (vector_bytes() >= 32) return vectors32::deconv_pixel_rows<T>(p, weights, width, begin, end);
#endif
  vectors16::deconv_pixel_rows<T>(p, weights, width, begin, end);
}

int64_t phase_taps(const Pool& pool, int axis) {
  return ceil_divide(pool.kernel[axis], pool.cell_step[axis]);
}

// Work as bytes for parallel_chunks: what is written, or products, a vector of which takes about
// as long as a vector's store.
int64_t work(const SubpixelDeconvParams& p) {
  const View& out = p.out;
  const int64_t pixels = out.n * out.size[0] * out.size[1] * out.size[2] * out.c;
  const Pool& pool = p.pool;
  const int64_t taps = phase_taps(pool, 0) * phase_taps(pool, 1) * phase_taps(pool, 2);
  return pixels * taps * (p.x.c / p.groups) * 4;
}

// The filter by phases, as tiles take it: value t of tap m is that of the columns o with
// o = t modulo stride.
template <typename T>
void pack(const SubpixelDeconvParams& p, DeconvTiles<Widened<T>>& tiles) {
  using W = Widened<T>;
  const Pool& pool = p.pool;
  const int64_t stride = pool.stride[2], kernel = pool.kernel[2];
  const int64_t lines = pool.kernel[0] * pool.kernel[1];
  tiles.filter = lines * tiles.taps * tiles.pattern;
  tiles.weights.resize(static_cast<size_t>(p.out.c * tiles.into * tiles.filter));
  tiles.mask.resize(static_cast<size_t>(tiles.pattern));
  const T* const weight = reinterpret_cast<const T*>(p.weight);
  std::vector<int64_t> tap(static_cast<size_t>(tiles.pattern));  // of m = 0
  for (int64_t t = 0; t < tiles.pattern; ++t) {
    tap[t] = (t + pool.padding[2]) % stride;
    if (tap[t] + (tiles.taps - 1) * stride < kernel) memset(&tiles.mask[t], 0xff, sizeof(W));
  }
  W* to = tiles.weights.data();
  for (int64_t o = 0; o < p.out.c; ++o) {
    for (int64_t i = 0; i < tiles.into; ++i) {
      const int64_t from = o / tiles.onto * tiles.into + i;
      const T* const taps = weight + (from * tiles.onto + o % tiles.onto) * lines * kernel;
      for (int64_t line = 0; line < lines; ++line) {
        for (int64_t m = 0; m < tiles.taps; ++m) {
          for (int64_t t = 0; t < tiles.pattern; ++t) {
            const int64_t k = tap[t] + m * stride;
            *to++ = k < kernel ? widen(taps[line * kernel + k]) : W{0};
          }
        }
      }
    }
  }
}

template <typename T>
void tiled(const SubpixelDeconvParams& p, int threads) {
  using W = Widened<T>;
  const View& out = p.out;
  const Pool& pool = p.pool;
  const int64_t lanes = vector_bytes() / int64_t{sizeof(W)}, stride = pool.stride[2];
  DeconvTiles<W> tiles;
  tiles.into = p.x.c / p.groups;
  tiles.onto = out.c / p.groups;
  tiles.taps = phase_taps(pool, 2);
  tiles.repeats = (stride == 1 || stride == 2 || stride == 4) && stride * sizeof(W) <= 16;
  tiles.pattern = tiles.repeats ? stride : stride + lanes;
  pack<T>(p, tiles);

  // Rows of x, all input channels and slices of it, that stay in the cache.
  constexpr int64_t kBudget = (192 << 10) / int64_t{sizeof(W)};
  const int64_t maps = tiles.into * phase_taps(pool, 0);
  const int64_t reach = (tiles.taps - 1) * stride;
  const auto rows_for = [&](int64_t height) {
    const int64_t span = (pool.kernel[1] - 1) * pool.dilation[1];
    return std::min(p.x.size[1], (height - 1 + span) / pool.stride[1] + 2);
  };
  const int64_t block = 8 * lanes, least = std::min(pool.stride[1], out.size[1]);
  const int64_t fit = kBudget / std::max(int64_t{1}, maps * rows_for(least)) - reach;
  tiles.across = ceil_divide(out.size[2], std::max(block, fit / block * block));
  tiles.width = ceil_divide(ceil_divide(out.size[2], tiles.across), block) * block;
  tiles.across = ceil_divide(out.size[2], tiles.width);
  tiles.length = ceil_divide(std::min(tiles.width, out.size[2]), lanes) * lanes + reach + 2 * lanes;
  const int64_t others = out.n * p.groups * out.size[0] * tiles.across;
  tiles.height = least;
  // Where groups share the lines of the output, a tile's pixels stay in the cache for all of them.
  const bool shared = p.groups > 1 && channels_last(out);
  const int64_t row = std::min(tiles.width, out.size[2]) * out.c;
  while (tiles.height < out.size[1] && (!shared || (tiles.height + least) * row <= kBudget) &&
         maps * rows_for(tiles.height + least) * tiles.length <= kBudget &&
         others * ceil_divide(out.size[1], tiles.height + least) >= 4 * threads)
    tiles.height = std::min(tiles.height + least, out.size[1]);
  tiles.down = ceil_divide(out.size[1], tiles.height);
  tiles.most_rows = rows_for(tiles.height);
  parallel_chunks(others * tiles.down, work(p), threads,
                  [&](int64_t begin, int64_t end) { run_tiles<T>(p, tiles, begin, end); });
}

template <typename T>
void by_pixels(const SubpixelDeconvParams& p, int threads) {
  const View& out = p.out;
  const int64_t filter = p.pool.kernel[0] * p.pool.kernel[1] * p.pool.kernel[2];
  std::vector<Widened<T>> weights(static_cast<size_t>(filter * out.c));  // channels last
  const T* const weight = reinterpret_cast<const T*>(p.weight);
  for (int64_t c = 0; c < out.c; ++c)
    for (int64_t k = 0; k < filter; ++k) weights[k * out.c + c] = widen(weight[c * filter + k]);
  const int64_t width = 512;
  const int64_t count = out.n * out.size[0] * out.size[1] * ceil_divide(out.size[2], width);
  parallel_chunks(count, work(p), threads, [&](int64_t begin, int64_t end) {
    run_pixels<T>(p, weights.data(), width, begin, end);
  });
}

template <typename T>
void by_elements(const SubpixelDeconvParams& p, int threads) {
  const View& out = p.out;
  const int64_t count = out.n * out.c * out.size[0] * out.size[1] * out.size[2];
  parallel_chunks(count, work(p), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      channels_last(out) ? deconv_element<T, true>(p, i) : deconv_element<T, false>(p, i);
  });
}

}  // namespace

void subpixel_deconv(const SubpixelDeconvParams& p, int threads) {
  const View &x = p.x, &out = p.out;
  if (out.n * out.c * out.size[0] * out.size[1] * out.size[2] == 0) return;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const bool each = p.groups == x.c && p.groups == out.c;
    const int64_t lanes = vector_bytes() / int64_t{sizeof(Widened<T>)};
    if (p.pool.dilation[2] > 1 && p.pool.kernel[2] > 1) {
      by_elements<T>(p, threads);
    } else if (each && x.stride_c == 1 && channels_last(out) && out.c >= lanes) {
      by_pixels<T>(p, threads);
    } else {
      tiled<T>(p, threads);
    }
  });
}

}  // namespace backsight::cpu

#include "core/unpool_deconv.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/switches.h"
#include "cpu/window_lists.h"

namespace backsight::cpu {
namespace {

// An unpooled map is 0 in all but one cell of most windows, and after the ReLU in half of those
// too. So the channels of a cell that are not 0 become a list, and the cell's part of the output,
// for all taps and some output channels, is a sum over that list, held in registers: the weights of
// an input channel lie side by side in the order in which they are added, and so do the taps along
// the last axis and the output channels of a block in the scratch that they are added to.

constexpr int kMostVectors = 16;  // of sums

// Sums that are held together. Each vector is a part of a line: of the taps along the last axis,
// times the output channels of a block.
struct Tile {
  int vectors;
  int64_t weights;             // values of an input channel and block in front of the tile's
  int64_t line[kMostVectors];  // taps on the other axes, in raster order
  int64_t at[kMostVectors];    // the first value in the line
  bool partial[kMostVectors];  // whether the line ends in the vector
};

// Values side by side in a tile, of the same tap: of output channels one after the other.
struct Run {
  int64_t tile, to;     // the tile, and the value of its own
  int64_t from, count;  // elements from an input channel's first of the block
};

// From there on vectors lie in one line of the cache each; kAlign bytes more are held.
constexpr int64_t kAlign = 64;
template <typename W>
W* aligned(W* values) {
  const auto rest = reinterpret_cast<uintptr_t>(values) % kAlign;
  return rest == 0 ? values : values + (kAlign - rest) / sizeof(W);
}

template <typename W>
struct DeconvBands {
  int64_t into, onto;                  // channels of a group
  int64_t block, blocks;               // output channels of a block, blocks of a group
  int64_t lines, line;                 // of a filter, and values of a line
  int64_t lanes;                       // of a vector
  std::vector<Tile> tiles;             // the last taps come first
  int64_t filter;                      // values of an input channel and block in all tiles
  std::vector<Run> of_block, of_last;  // of a full block and of a group's last
  std::unique_ptr<W[]> weights;  // (groups, blocks, tiles, into, values of the tile), or none;
                                 // aligned
  std::vector<W> mask;           // (lanes,) all bits set inside the line that ends in a vector
  int64_t height, down;          // output rows of a band, bands of an entry
  int64_t row;                   // values of an output row, not cropped, in the scratch
  int64_t together;              // bands that share what is read of the weights
  bool by_blocks;                // threads share the blocks, and pack their weights
  int64_t channels;              // of the scratch of y: those of each group fill vectors
  int64_t pitch;                 // rows of that scratch
  bool in_place;                 // y and switches need none
};

// Output rows [top, bottom) of entry n, and the rows [first, last) of the map that reach them.
struct Band {
  int64_t n, top, bottom, first, last;
};
Band band_at(const SubpixelDeconvParams& p, int64_t height, int64_t n, int64_t i) {
  const Pool& pool = p.pool;
  Band band;
  band.n = n;
  band.top = i * height;
  band.bottom = std::min(band.top + height, p.out.size[1]);
  const int64_t stride = pool.stride[1], reach = (pool.kernel[1] - 1) * pool.dilation[1];
  const int64_t rows = p.x.size[1];
  band.first =
      std::min(std::max<int64_t>(0, ceil_divide(band.top + pool.padding[1] - reach, stride)), rows);
  band.last = std::min(divide(band.bottom - 1 + pool.padding[1], stride) + 1, rows);
  band.last = std::max(band.first, band.last);
  return band;
}

// The cells of some bands that are not 0.
template <typename W>
struct Listed {
  std::vector<int64_t> begin;  // of each cell and group in raster order; and the end of the last
  std::vector<W> values;
  std::vector<int32_t> channels;  // of the group
};

// One row of cells, for one tile.
template <typename W>
struct CellRow {
  const int64_t* begin;  // of each cell's list, `step` from cell to cell
  int64_t step, cells;
  const W* values;
  const int32_t* channels;
  const W* weights;     // of channel 0
  W* to[kMostVectors];  // where the vectors of cell 0 go; null if that is no row of the band
  const bool* partial;
  const W* mask;
  int64_t advance;  // values from cell to cell
};

// The weights of a block as its tiles take them, of input channels [begin, end) of its group; 0
// where it has no such channel.
template <typename T>
void pack_block(const UnpoolDeconvParams& p, const DeconvBands<Widened<T>>& bands, int64_t block,
                int64_t begin, int64_t end, Widened<T>* to) {
  using W = Widened<T>;
  const int64_t group = block / bands.blocks, b = block % bands.blocks, step = p.weight_channel;
  const bool last = b == bands.blocks - 1;
  const bool holes = bands.block % bands.lanes != 0 || bands.blocks * bands.block > bands.onto;
  const T* const weight = reinterpret_cast<const T*>(p.deconv.weight) +
                          group * bands.into * p.weight_input + b * bands.block * step;
  for (int64_t c = begin; c < end; ++c) {
    const auto start = [&](const Tile& tile) {
      return to + tile.weights * bands.into + c * tile.vectors * bands.lanes;
    };
    if (holes)
      for (const Tile& tile : bands.tiles)
        std::fill_n(start(tile), tile.vectors * bands.lanes, W{0});
    for (const Run& run : last ? bands.of_last : bands.of_block) {
      W* const values = start(bands.tiles[static_cast<size_t>(run.tile)]) + run.to;
      const T* const from = weight + c * p.weight_input + run.from;
      if (step == 1) {
        for (int64_t k = 0; k < run.count; ++k) values[k] = widen(from[k]);
      } else {
        for (int64_t k = 0; k < run.count; ++k) values[k] = widen(from[k * step]);
      }
    }
  }
}

#define BACKSIGHT_VECTOR_CODE "cpu/unpool_deconv_lanes.h"
#include "cpu/each_isa.h"

template <typename T>
void run_bands(const UnpoolDeconvParams& p, const DeconvBands<Widened<T>>& bands, int64_t begin,
               int64_t end) {
#if BACKSIGHT_HAS_TARGETS
  if (vector_bytes() >= 64) return vectors64::deconv_bands<T>(p, bands, begin, end);
  if (vector_bytes() >= 32) return vectors32::deconv_bands<T>(p, bands, begin, end);
#endif
  vectors16::deconv_bands<T>(p, bands, begin, end);
}

// How the sums of a filter become tiles.
template <typename W>
void tile(const UnpoolDeconvParams& p, DeconvBands<W>& bands) {
  const SubpixelDeconvParams& d = p.deconv;
  const int64_t kernel = d.pool.kernel[2];
  const int64_t lanes = bands.lanes = vector_bytes() / int64_t{sizeof(W)};
  bands.into = d.x.c / d.groups;
  // As many sums as there are registers for, of weights that leave room in the cache.
  constexpr int64_t kTile = 128 << 10;
  const int64_t most =
      std::max<int64_t>(4, std::min<int64_t>(vector_bytes() == 64 ? kMostVectors : 12,
                                             kTile / (bands.into * vector_bytes())));
  bands.onto = d.out.c / d.groups;
  bands.lines = d.pool.kernel[0] * d.pool.kernel[1];
  // A block's channels times the taps of a line should be few vectors, and blocks should be full.
  const int64_t wanted = std::max<int64_t>(1, most / kernel);
  const int64_t vectors = ceil_divide(bands.onto, lanes);
  bands.block = bands.onto;
  bands.blocks = 1;
  if (vectors > wanted) {
    int64_t best = wanted;
    for (int64_t v = wanted; v >= (wanted + 1) / 2; --v)
      if (ceil_divide(vectors, v) * v < ceil_divide(vectors, best) * best) best = v;
    bands.block = best * lanes;
    bands.blocks = ceil_divide(vectors, best);
  }
  bands.line = kernel * bands.block;
  const int64_t across = ceil_divide(bands.line, lanes);
  const auto add = [&](int64_t line, int64_t lines, int64_t first, int64_t count) {
    Tile t;
    t.vectors = 0;
    for (int64_t l = line; l < line + lines; ++l)
      for (int64_t v = first; v < first + count; ++v, ++t.vectors) {
        t.line[t.vectors] = l;
        t.at[t.vectors] = v * lanes;
        t.partial[t.vectors] = (v + 1) * lanes > bands.line;
      }
    t.weights = bands.filter;
    bands.filter += t.vectors * lanes;
    bands.tiles.push_back(t);
  };
  bands.filter = 0;
  if (across > most) {  // a line is several tiles
    const int64_t parts = ceil_divide(across, most), size = ceil_divide(across, parts);
    for (int64_t line = bands.lines - 1; line >= 0; --line)
      for (int64_t first = (ceil_divide(across, size) - 1) * size; first >= 0; first -= size)
        add(line, 1, first, std::min(size, across - first));
  } else {
    const int64_t parts = ceil_divide(bands.lines, most / across);
    const int64_t size = ceil_divide(bands.lines, parts);
    for (int64_t line = (ceil_divide(bands.lines, size) - 1) * size; line >= 0; line -= size)
      add(line, std::min(size, bands.lines - line), 0, across);
  }
  bands.mask.resize(static_cast<size_t>(lanes));
  memset(bands.mask.data(), 0xff,
         static_cast<size_t>(bands.line - (across - 1) * lanes) * sizeof(W));
}

// The runs of a block of `used` channels.
template <typename W>
std::vector<Run> runs_of(const UnpoolDeconvParams& p, const DeconvBands<W>& bands, int64_t used) {
  std::vector<Run> runs;
  const int64_t kernel = p.deconv.pool.kernel[2];
  for (size_t t = 0; t < bands.tiles.size(); ++t) {
    const Tile& tile = bands.tiles[t];
    for (int64_t k = 0; k < tile.vectors * bands.lanes; ++k) {
      const int64_t v = k / bands.lanes, at = tile.at[v] + k % bands.lanes;
      const int64_t tap = at / bands.block, channel = at % bands.block;
      if (tap >= kernel || channel >= used) continue;
      if (!runs.empty() && channel > 0 && runs.back().tile == static_cast<int64_t>(t) &&
          runs.back().to + runs.back().count == k) {
        ++runs.back().count;
        continue;
      }
      runs.push_back({static_cast<int64_t>(t), k,
                      channel * p.weight_channel + (tile.line[v] * kernel + tap) * p.weight_tap,
                      1});
    }
  }
  return runs;
}

template <typename T>
void by_bands(const UnpoolDeconvParams& p, int threads) {
  using W = Widened<T>;
  const MaxUnpoolParams& u = p.unpool;
  const SubpixelDeconvParams& d = p.deconv;
  const View &x = d.x, &out = d.out;
  DeconvBands<W> bands;
  tile(p, bands);
  bands.of_block = runs_of(p, bands, bands.block);
  bands.of_last = runs_of(p, bands, bands.onto - (bands.blocks - 1) * bands.block);

  constexpr int64_t kBudget = 1 << 20, kMost = 4 << 20;  // bytes of a thread's scratch
  const int64_t wide = std::max((x.size[2] - 1) * d.pool.stride[2] + d.pool.kernel[2],
                                out.size[2] + d.pool.padding[2]);
  bands.row = wide * bands.block;
  // Of each output row: the scratch, and the lists, of cells an eighth of whose values are not 0.
  const int64_t bytes = bands.row * out.size[0] * int64_t{sizeof(W)} +
                        x.size[0] * x.size[2] * x.c * int64_t{sizeof(W)} / (4 * d.pool.stride[1]);
  const int64_t fit = std::max<int64_t>(1, kBudget / bytes);
  bands.down = ceil_divide(out.size[1], std::min(fit, out.size[1]));
  const int64_t blocks = bands.blocks * d.groups;
  bands.by_blocks =
      out.n * out.size[1] * bytes <= kMost && (blocks % threads == 0 || blocks >= 4 * threads);
  if (!bands.by_blocks && out.n * bands.down < 4 * threads && out.n % threads != 0)
    bands.down = std::min(ceil_divide(bands.down, threads) * threads, out.size[1]);
  bands.height = ceil_divide(out.size[1], bands.down);
  bands.down = ceil_divide(out.size[1], bands.height);
  bands.together =
      bands.by_blocks ? out.n * bands.down : std::max<int64_t>(1, kBudget / (bytes * bands.height));

  bands.in_place =
      u.y.stride_c == 1 && u.switches.stride_c == 1 && d.groups == 1 && u.y.c % bands.lanes == 0;
  bands.channels = d.groups * ceil_divide(bands.into, bands.lanes) * bands.lanes;
  const int64_t reach = (d.pool.kernel[1] - 1) * d.pool.dilation[1];
  const int64_t rows = std::min((bands.height - 1 + reach) / d.pool.stride[1] + 1, x.size[1]);
  const int64_t span = (u.pool.kernel[1] - 1) * u.pool.dilation[1] + rows;
  bands.pitch = std::min(span / u.pool.stride[1] + 1, u.y.size[1]);

  const int64_t work = elements_of(out) * bands.into * bands.lines;
  if (!bands.by_blocks) {
    const int64_t size = bands.filter * bands.into;
    bands.weights.reset(new W[static_cast<size_t>(blocks * size + kAlign)]);
    W* const weights = aligned(bands.weights.get());
    parallel_chunks(bands.into, blocks * size * 8, threads, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < blocks; ++b)
        pack_block<T>(p, bands, b, begin, end, weights + b * size);
    });
  }
  parallel_chunks(bands.by_blocks ? blocks : out.n * bands.down, work, threads,
                  [&](int64_t begin, int64_t end) { run_bands<T>(p, bands, begin, end); });
}

template <typename T>
void by_elements(const UnpoolDeconvParams& p, int threads) {
  const View& out = p.deconv.out;
  const int64_t count = elements_of(out);
  with_switch_type(p.unpool.switch_bytes, [&](auto s) {
    using Switch = decltype(s);
    parallel_chunks(count, count * 64, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        channels_last(out) ? unpool_deconv_element<T, Switch, true>(p, i)
                           : unpool_deconv_element<T, Switch, false>(p, i);
    });
  });
}

}  // namespace

void unpool_deconv(const UnpoolDeconvParams& p, int threads) {
  check_switches("unpool_deconv", p.unpool, threads);
  const SubpixelDeconvParams& d = p.deconv;
  if (elements_of(d.out) == 0) return;
  with_element(d.dtype, [&](auto element) {
    using T = decltype(element);
    const bool gaps = d.pool.dilation[2] > 1 && d.pool.kernel[2] > 1;
    const bool narrow = d.groups > 1 && d.x.c / d.groups < 4;  // most lanes would be empty
    if (p.unpool.switch_bytes > 1 || gaps || narrow) {
      by_elements<T>(p, threads);
    } else {
      by_bands<T>(p, threads);
    }
  });
}

}  // namespace backsight::cpu

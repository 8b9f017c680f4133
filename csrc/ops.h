// The C++ contract: everything that crosses between Python and the kernels.
//
// Kernels never see tensors, only pointers, sizes and strides. The caller (src/backsight/ops) has
// already checked shapes, dtypes and devices, allocated the output and set the current device; the
// kernels neither allocate nor synchronise. Shared conventions:
//   - One to three spatial axes; one or two are padded in front with axes of size 1.
//   - Sizes and strides count elements. Strides may be 0 (expanded) or in any order.
//   - Every output element is written (overwritten, never accumulated into). An empty output is a
//     no-op. Outputs never overlap inputs.
//   - Coordinates are int64, global, and of magnitude below 2^61.
//   - Results depend neither on the number of threads nor on the instruction set.
#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace backsight {

constexpr int kAxes = 3;  // spatial axes: depth, height, width

enum class DType : int { kFloat64, kFloat32, kFloat16, kBFloat16 };

// A strided (n, c, depth, height, width) array of some DType.
struct View {
  char* data;
  int64_t n, c;
  int64_t stride_n, stride_c;
  int64_t size[kAxes];
  int64_t stride[kAxes];
};

// N copies of each of B images, with the inside of a box replaced: row b * N + n of the output is
// image b, except that inside box n, cut to the image, it is the baseline. An empty box changes
// nothing. Elements are copied bit for bit.
struct OccludeParams {
  DType dtype;           // of image, baseline and out
  View image;            // (B, C, *S)
  View baseline;         // (B, C, *S), expanded with strides of 0
  View out;              // (B * N, C, *S), dense, contiguous or channels last
  int64_t copies;        // N
  const int64_t* boxes;  // (N, 2 * dims) half-open, starts then ends
  int dims;              // 1, 2 or 3
};

// Heat maps of K outputs: at every pixel the sum, or the mean, of the scores of the boxes that
// cover it, rounded once from the exact sum (of doubles: from one good to a hundred bits). Exactly
// 0 where no box lies; NaN where a covering score is not finite. The order of the boxes changes no
// bit. Boxes are cut to the map; an empty one covers nothing. On the CPU the kernel allocates its
// own scratch, since only it knows how finely boxes cut the map.
struct HeatmapParams {
  DType dtype;           // of scores and out
  const char* scores;    // (N, K) contiguous
  const int64_t* boxes;  // (N, 2 * dims) half-open, starts then ends
  int64_t n, k;          // N boxes, K outputs
  int dims;              // 1, 2 or 3
  int64_t size[kAxes];   // of the map
  bool mean;             // else sum
  char* out;             // (K, *size) contiguous
  char* workspace;       // CUDA: heatmap_workspace(p) bytes, aligned to 16
};

// Bytes of scratch that cuda::heatmap needs, whatever the boxes are.
int64_t heatmap_workspace(const HeatmapParams& p);

// The windows of a pool: cell k of window o lies at o * stride - padding + k * dilation on each
// axis. Its offset in the window is the raster index of k in `kernel`.
struct Pool {
  int64_t kernel[kAxes], stride[kAxes], padding[kAxes], dilation[kAxes];
  // Windows that have a cell in common with window o are those o + i * window_step, and their cell
  // is k - i * cell_step: dilation and stride over their greatest common divisor.
  int64_t window_step[kAxes], cell_step[kAxes];

  void set_steps() {
    for (int axis = 0; axis < kAxes; ++axis) {
      const int64_t common = std::gcd(stride[axis], dilation[axis]);
      window_step[axis] = dilation[axis] / common;
      cell_step[axis] = stride[axis] / common;
    }
  }
};

// Maxima of pooling windows, and switches: the offset of each maximum in its window. Of equal
// maxima the first in raster order wins, of several NaNs the last, as in torch; a window of -inf
// alone has the switch of its first cell inside the map. Maxima are copied bit for bit. The caller
// promises that every window has a cell inside the map.
struct MaxPoolParams {
  DType dtype;       // of x and y
  int switch_bytes;  // 1 (uint8), 2 (int16) or 4 (int32), enough for all offsets
  bool relu;         // x is taken as max(x, 0); NaN stays
  Pool pool;
  View x;         // (B, C, *S), contiguous, or with dense channels if y has them
  View y;         // (B, C, *O), dense, contiguous or channels last
  View switches;  // as y
};

// Pooling windows' values back in the cells of x that switches point to, and the other way round.
//
// max_unpool: a cell of x is the sum of the y of all windows whose switch points to it, 0 if there
// are none; or, with `set`, the y of the last such window in raster order, bit for bit. Sums run in
// raster order of the windows, in float for 16 bits. `relu` takes max(x, 0) of the result; NaN
// stays. max_gather: the y of a window is the cell of x that its switch points to; with `set` it is
// 0 if a later window's switch points there too. Bit for bit.
//
// Without base_index entry b of x and y is the whole map b of M. With it, y holds the windows from
// y_at[b] on, of map base_index[b]; those outside [0, *O) are none, and max_gather makes them 0.
// Cell 0 of x is cell window_at[b] of the map, and what lies outside x is 0 or dropped.
//
// A switch that points to no cell of its window, or without base_index out of x, or a base_index of
// no map is an error: std::invalid_argument or, on CUDA, a failed device assertion. Only the
// switches of windows that y holds are looked at. Nothing is written outside the output even so.
struct MaxUnpoolParams {
  DType dtype;       // of x and y
  int switch_bytes;  // 1 (uint8), 2 (int16) or 4 (int32)
  bool set, relu;
  Pool pool;
  View x;                     // (B, C, *S)
  View y;                     // (B, C, *W)
  View switches;              // (M, C, *O), dense, the layout of the output; x and y, which are
                              // dense, have it too
  const int64_t* base_index;  // (B,), or null
  const int64_t* y_at;        // (B, dims), or null
  const int64_t* window_at;   // (B, dims), or null
  int dims;                   // 1, 2 or 3: the columns of y_at and window_at
};

// Batch norm and ReLU over maps joined along the channels: with x the maps' channels one map after
// the other,
//   out[n, c, ...] = max(x[n, c, ...] * scale[c] + shift[c], 0)
// in float64 for float64 and in float32 for all others: product and sum are each rounded there,
// never contracted, and the result once to dtype. NaN stays NaN, and -0 stays -0. A map of no
// channels counts for nothing.
struct PreactivationParams {
  DType dtype;             // of maps and out
  std::vector<View> maps;  // each (N, C_i, *S)
  View out;                // (N, C, *S) with C the sum of C_i, dense, contiguous or channels last
  const char* scale;       // (C,) contiguous, of the dtype computed in
  const char* shift;       // likewise
};

// y = max(x, 0), element by element, and for each element a bit that says whether a gradient passes
// there: x > 0, or x is NaN. As in torch NaN stays NaN and -0 stays -0 in y, and their bits are 1
// and 0. x and y are dense and laid out alike; y may be x.
//
// Bits lie in bytes, along the channels if those are last in memory and else along the last axis:
// element i of such a row is bit i % 8, the lowest first, of the row's byte i / 8. A row is padded
// with zero bits to whole bytes, and the bytes lie densely in the layout of x: (N, C, *S) whose
// channels are last has (N, ceil(C / 8), *S) bytes whose channels are last, and any other has
// (N, C, *S[:-1], ceil(S[-1] / 8)) bytes, contiguous.
struct ReluParams {
  DType dtype;           // of x and y
  const char* x;         // (rows, length)
  char* y;               // (rows, length)
  uint8_t* bits;         // (rows, ceil(length / 8))
  int64_t rows, length;  // pixels and channels, or lines and cells of the last axis
};

// A signal on its way back through relu. With R an element of grad, and the bit that relu left for
// its cell,
//   gradient:   R if the bit is set, else 0
//   deconvnet:  max(R, 0), whatever the bit
//   guided:     max(R, 0) if the bit is set, else 0
// and max as in relu: NaN stays NaN, and -0 stays -0. What a clear bit holds back is +0 whatever R
// is, NaN too: so torch has it.
//
// Without base_index grad is as large as the bits' maps, and entry n reads map n. With it, grad is
// B windows of the maps: the cell of window b at global coordinate g reads the bit [base_index[b],
// :, g - base_at]. The result is 0 where g lies outside [0, extent) on any axis; and NaN where it
// lies inside but the bit is not held, because g lies outside the tile or the index is that of no
// map (the caller promised that it is held); deconvnet asks for no bits.
enum class Rule : int { kGradient, kDeconvnet, kGuided };
struct RectifyParams {
  DType dtype;  // of grad and out
  Rule rule;
  const char* grad;           // (B, C, *size), dense, with the bits' layout
  char* out;                  // (B, C, *size), laid out as grad
  int64_t n, c, size[kAxes];  // B, C and size
  bool channels_last;         // the layout: bytes along the channels, else along the last axis
  const uint8_t* bits;        // of (M, C, *tile), as relu leaves them; null for deconvnet
  int64_t maps;               // M
  int64_t tile[kAxes];        // size of what the bits are of
  int64_t base_at[kAxes];     // global coordinate of the tile's first cell
  int64_t extent[kAxes];      // size of the whole map
  const int64_t* base_index;  // (B,), or null
  const int64_t* window_at;   // (B, dims) global coordinate of each window's first cell, or null
  int dims;                   // 1, 2 or 3: the columns of window_at
};

// B windows of M base maps, with a patch pasted over each. The cell of window b at global
// coordinate g is, for every channel,
//   outside                                if g lies outside [0, extent) on any axis, else
//   patch[b, :, g - patch_at[b]]           if g lies in the patch, else
//   base[base_index[b], :, g - base_at]    if g lies in the tile and 0 <= base_index[b] < M, else
//   NaN                                    (the caller promised that the tile holds it).
// Elements are copied bit for bit. A patch of size 0 on any axis is no patch.
struct SpliceParams {
  DType dtype;                // of base, patch and out
  View base;                  // (M, C, *T)
  View patch;                 // (B, C, *P)
  View out;                   // (B, C, *size), dense, contiguous or channels last
  int64_t base_at[kAxes];     // global coordinate of the tile's first cell
  int64_t extent[kAxes];      // size of the whole map
  const int64_t* base_index;  // (B,)
  const int64_t* patch_at;    // (B, dims) global coordinate of each patch's first cell
  const int64_t* window_at;   // (B, dims) global coordinate of each window's first cell
  int dims;                   // 1, 2 or 3: the columns of patch_at and window_at
  double outside;             // rounded to dtype
};

// Transposed convolution by output phases: on each axis output i * stride - padding + k * dilation
// gets x at i times tap k of the filter, for all i of x and k of the filter; then the bias, then
// max(y, 0) with `relu`; NaN stays. Sums run over input channels, then taps in raster order, in
// float64 for float64 and else in float32, product and sum each rounded; the result is rounded once
// to dtype. On the CPU the kernel allocates its own scratch: the taps by phase, and some rows of x.
struct SubpixelDeconvParams {
  DType dtype;         // of x, weight, bias and out
  bool relu;           // take max(y, 0)
  int64_t groups;      // of channels that do not see each other
  Pool pool;           // of the convolution whose transpose this is: out is its input
  View x;              // (B, I, *S), any strides
  const char* weight;  // (I, O / groups, *kernel), contiguous
  const char* bias;    // (O,), contiguous, or null
  View out;            // (B, O, *size), dense, contiguous or channels last
};

// subpixel_deconv of max_unpool, without the map between them: unpool.x is that map's shape and
// layout, without data, and deconv.x the same. A cell of the map is rounded to dtype, as max_unpool
// rounds it. Cells are taken in raster order; the channels of each are added up by themselves, and
// that sum to the output's. A channel that is 0 in a cell counts for nothing, whatever its weights
// are. The errors are those of max_unpool. On the CPU the kernel allocates its own scratch: the
// weights in the order in which they are read, the cells of some rows that are not 0, and rows of
// the output.
struct UnpoolDeconvParams {
  MaxUnpoolParams unpool;
  SubpixelDeconvParams deconv;  // without relu
  // Elements of the weight from input channel to input channel, from output channel to output
  // channel of a group, and from tap to tap.
  int64_t weight_input, weight_channel, weight_tap;
};

// The phases of a transposed convolution, each computed by itself, to their places: on each axis
// output o is cell (o + first) / stride of phase (o + first) % stride; then bias and max(y, 0) as
// in subpixel_deconv. With strides of 1 it only changes a layout.
struct DeconvInterleaveParams {
  DType dtype;  // of phases, bias and out
  bool relu;
  const char* phases;
  int64_t phases_n, channel;          // elements from entry to entry, from channel to channel
  int64_t cell[kAxes], phase[kAxes];  // from cell to cell and from phase to phase of each axis
  int64_t stride[kAxes], first[kAxes];
  const char* bias;  // (C,) contiguous, or null
  View out;          // (B, C, *size), dense, contiguous or channels last
};

namespace cpu {
void deconv_interleave(const DeconvInterleaveParams& p, int threads);
// A number for so many bytes: equal for equal bytes, whatever `threads` is and on every instruction
// set; for others the same only by an accident of one in 2^64. No defence against an attacker.
uint64_t digest(const void* data, int64_t bytes, int threads);
void heatmap(const HeatmapParams& p, int threads);
// What cuda::heatmap does, its threads one after the other, whatever `threads` is; for tests.
void heatmap_phases(const HeatmapParams& p, int threads);
void max_gather(const MaxUnpoolParams& p, int threads);
void max_pool(const MaxPoolParams& p, int threads);
void max_unpool(const MaxUnpoolParams& p, int threads);
void occlude(const OccludeParams& p, int threads);
void preactivation(const PreactivationParams& p, int threads);
void rectify(const RectifyParams& p, int threads);
void relu(const ReluParams& p, int threads);
void splice(const SpliceParams& p, int threads);
void subpixel_deconv(const SubpixelDeconvParams& p, int threads);
void unpool_deconv(const UnpoolDeconvParams& p, int threads);
}  // namespace cpu

namespace cuda {
// What there is to run on: versions as 1000 * major + 10 * minor, 0 where there is none, and either
// the GPUs' names or the reason why there is none.
struct Info {
  int runtime, driver;
  std::string devices;
};
Info info();

// `stream` is a cudaStream_t. Launches only: capturable in a graph.
void heatmap(void* stream, const HeatmapParams& p);
void max_gather(void* stream, const MaxUnpoolParams& p);
void max_pool(void* stream, const MaxPoolParams& p);
void max_unpool(void* stream, const MaxUnpoolParams& p);
void occlude(void* stream, const OccludeParams& p);
void preactivation(void* stream, const PreactivationParams& p);
void rectify(void* stream, const RectifyParams& p);
void relu(void* stream, const ReluParams& p);
void splice(void* stream, const SpliceParams& p);
void subpixel_deconv(void* stream, const SubpixelDeconvParams& p);
void unpool_deconv(void* stream, const UnpoolDeconvParams& p);
}  // namespace cuda

}  // namespace backsight

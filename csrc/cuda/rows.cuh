// Launches ops that write row by row: the copying ops, which core/rows.h defines, and
// preactivation.
#pragma once

#include <algorithm>

#include "core/rows.h"
#include "cuda/check.h"

namespace backsight::cuda {

constexpr int kThreads = 256;

// blockDim.x threads share a row; blockDim.y rows share a block.
template <typename T, bool kChannelsLast, int kVector, typename Rows>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const __grid_constant__ Rows rows, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  for (; r < count; r += step)
    write_row<T, kChannelsLast, kVector>(rows, r, threadIdx.x, blockDim.x);
}

// How many blocks and threads write `count` rows of `length` elements, `vector` at a time.
struct RowGrid {
  unsigned blocks;
  dim3 threads;
};

inline RowGrid row_grid(int64_t count, int64_t length, int vector) {
  unsigned across = 1;  // threads on a row: a power of two, as many as it has blocks to write
  while (across < kThreads && across * vector < length) across *= 2;
  const dim3 threads(across, kThreads / across);
  // Enough blocks to fill any GPU many times over; the kernel strides over what is left.
  const int64_t blocks = std::min<int64_t>((count + threads.y - 1) / threads.y, 1 << 20);
  return {static_cast<unsigned>(blocks), threads};
}

template <typename T, bool kChannelsLast, int kVector, typename Rows>
void launch_rows(cudaStream_t stream, const Rows& rows, int64_t count, int64_t length,
                 const char* name) {
  const RowGrid grid = row_grid(count, length, kVector);
  rows_kernel<T, kChannelsLast, kVector><<<grid.blocks, grid.threads, 0, stream>>>(rows, count);
  check_launch(name);
}

template <typename T, bool kChannelsLast, typename Rows>
void launch_rows(cudaStream_t stream, const Rows& rows, const char* name) {
  const View& out = rows.out();
  const int64_t channels = kChannelsLast ? out.c : 1;
  const int64_t length = out.size[2] * channels;
  const int64_t count = out.n * (out.c / channels) * out.size[0] * out.size[1];
  if (count * length == 0) return;
  constexpr int kVector = 16 / sizeof(T);
  if (length % kVector == 0 && reinterpret_cast<uintptr_t>(out.data) % 16 == 0) {
    launch_rows<T, kChannelsLast, kVector>(stream, rows, count, length, name);
  } else {
    launch_rows<T, kChannelsLast, 1>(stream, rows, count, length, name);
  }
}

template <typename T, typename Rows>
void launch_rows(cudaStream_t stream, const Rows& rows, const char* name) {
  if (channels_last(rows.out())) {
    launch_rows<T, true>(stream, rows, name);
  } else {
    launch_rows<T, false>(stream, rows, name);
  }
}

// Runtime values (element size, layout, alignment) become template constants here.
template <typename Rows>
void write_rows(void* stream, const Rows& rows, const char* name) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (rows.element_size()) {
    case 2: return launch_rows<uint16_t>(s, rows, name);
    case 4: return launch_rows<uint32_t>(s, rows, name);
    default: return launch_rows<uint64_t>(s, rows, name);
  }
}

}  // namespace backsight::cuda

// Copies described as runs: the rows of a window, as a list of pieces that are each contiguous,
// evenly spaced or constant in one source. The list is made once for a window and replayed for
// every channel of a contiguous output, or once, all channels together, if channels are last.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ops.h"

namespace backsight::cpu {

struct Run {
  enum Kind : int64_t { kLoose, kExact, kFill, kStrided };
  Kind kind;         // loose: 31 bytes past the piece may be read
  int64_t bytes;     // written for each channel replayed
  const char* from;  // in channel 0
  int64_t step;      // bytes from channel to channel replayed
  int64_t stride;    // strided: elements from cell to cell
  int64_t stride_c;  // strided: elements from channel to channel within a cell
};

class Runs {
 public:
  Runs(const View& out, int64_t element_size);

  // The next `cells` cells are copies of the element at `value`.
  void fill(const void* value, int64_t cells);
  // The next `cells` cells come from row (z, y) of entry n of v, from cell x on.
  void copy(const View& v, int64_t n, int64_t z, int64_t y, int64_t x, int64_t cells);

  void clear() { runs_.clear(); }
  const std::vector<Run>& list() const { return runs_; }
  int64_t width() const { return width_; }
  int64_t element_size() const { return element_size_; }

 private:
  void add(const Run& run);

  int64_t element_size_;
  bool channels_last_;
  int64_t width_;   // elements of a cell: the channels if they are last, else 1
  int64_t planes_;  // replays: the channels if they are not last, else 1
  std::vector<Run> runs_;
};

// Appends to `runs` what rows [begin, end) of depth * height of entry n of the output hold.
using Describe = std::function<void(Runs& runs, int64_t n, int64_t begin, int64_t end)>;

// Writes all of `out`, which is dense, on several threads.
void write_rows(const View& out, int64_t element_size, int threads, const Describe& describe);

}  // namespace backsight::cpu

// Copies described as runs: the rows of a window, as a list of pieces that are each contiguous,
// evenly spaced or constant in one source. The list is made once for a window and replayed for
// every channel of a contiguous output, or once, all channels together, if channels are last.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/rows.h"
#include "ops.h"

namespace backsight::cpu {

struct Run {
  enum Kind : int64_t { kLoose, kExact, kFill, kConstant, kStrided };
  Kind kind;         // loose: 31 bytes past the piece may be read; fill: one element, repeated
  int64_t bytes;     // written for each channel replayed
  const char* from;  // in channel 0
  int64_t step;      // bytes from channel to channel replayed
  uint64_t value;    // constant: its bits
  int64_t stride;    // strided: elements from cell to cell
  int64_t stride_c;  // strided: elements from channel to channel within a cell
};

class Runs {
 public:
  Runs(const View& out, int64_t element_size);

  // The next `cells` cells are those of `piece`, which begins in channel 0.
  void add(const Piece& piece, int64_t cells);
  void clear() { runs_.clear(); }

  const std::vector<Run>& list() const { return runs_; }
  int64_t width() const { return width_; }
  int64_t element_size() const { return element_size_; }

 private:
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

// The same for an op as defined in core/rows.h.
template <typename Rows>
void write_rows(const Rows& rows, int threads) {
  const View& out = rows.out();
  write_rows(out, rows.element_size(), threads,
             [&](Runs& runs, int64_t n, int64_t begin, int64_t end) {
               const auto window = rows.window(n);
               for (int64_t r = begin; r < end; ++r) {
                 const auto row = rows.row(window, n, 0, r / out.size[1], r % out.size[1]);
                 for (int64_t x = 0; x < out.size[2];) {
                   const Piece piece = rows.piece(window, row, x);
                   runs.add(piece, piece.end - x);
                   x = piece.end;
                 }
               }
             });
}

}  // namespace backsight::cpu

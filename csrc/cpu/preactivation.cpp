#include "core/preactivation.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

// Cells that one map writes before the next has its turn: many, so that each map is read in runs of
// memory, but not more than the ways of an L1 cache, in one set of which they fall where an
// output's cells lie a multiple of 4 KiB apart.
constexpr int64_t kCells = 8;

// Some channels of one map, at some cell.
template <typename T>
struct Part {
  const T* from;
  int64_t from_cell, from_channel;  // elements from cell to cell, from channel to channel
  int64_t to;                       // elements from the first part's place in the output
  int64_t channels;
  const Widened<T>*scale, *shift;
};

// Where parts go.
template <typename T>
struct Place {
  T* at;
  int64_t cell, channel;  // elements from cell to cell, from channel to channel
};

template <typename T>
HD void prefetch(const T* at, int64_t count) {
  const char* const bytes = reinterpret_cast<const char*>(at);
  for (int64_t i = 0; i < count * int64_t{sizeof(T)}; i += kLine)
    __builtin_prefetch(bytes + i, 0, 2);
}

// Elements side by side: one cell's channels, or, with a kStep of 0, one channel's cells.
template <int kStep, typename T>
HD void write_run(const T* __restrict from, T* __restrict to, int64_t count,
                  const Widened<T>* __restrict scale, const Widened<T>* __restrict shift) {
  // A count that is known to be whole lines spares the loop its ends.
  const int64_t whole = count & -(kLine / int64_t{sizeof(T)});
  for (int64_t i = 0; i < whole; ++i)
    to[i] = preactivated(from[i], scale[i * kStep], shift[i * kStep]);
  for (int64_t i = whole; i < count; ++i)
    to[i] = preactivated(from[i], scale[i * kStep], shift[i * kStep]);
}

// The same, whole aligned lines past the caches.
template <int kStep, typename T>
HD void stream_run(const T* from, T* to, int64_t count, const Widened<T>* scale,
                   const Widened<T>* shift) {
  constexpr int64_t kWhole = kLine / int64_t{sizeof(T)}, kMost = 8 * kWhole;
  alignas(kLine) T lines[kMost];
  const int64_t shared = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % kLine);
  const int64_t head = min64(count, shared / int64_t{sizeof(T)});
  write_run<kStep>(from, to, head, scale, shift);
  int64_t i = head;
  while (count - i >= kWhole) {
    const int64_t some = min64(kMost, (count - i) & -kWhole);
    write_run<kStep>(from + i, lines, some, scale + i * kStep, shift + i * kStep);
    for (int64_t k = 0; k < some; k += kWhole)
      stream_line(reinterpret_cast<char*>(to + i + k), reinterpret_cast<const char*>(lines + k));
    i += some;
  }
  write_run<kStep>(from + i, to + i, count - i, scale + i * kStep, shift + i * kStep);
}

template <bool kStream, int kStep, typename T>
HD void put_run(const T* from, T* to, int64_t count, const Widened<T>* scale,
                const Widened<T>* shift) {
  if (kStream) {
    stream_run<kStep>(from, to, count, scale, shift);
  } else {
    write_run<kStep>(from, to, count, scale, shift);
  }
}

template <bool kStream, typename T>
HD void write_part(const Part<T>& part, const T* from, const Place<T>& to, T* at, int64_t cells,
                   bool ahead) {
  if (part.from_channel == 1 && to.channel == 1) {
    for (int64_t i = 0; i < cells; ++i) {
      if (ahead) prefetch(from + kCells * part.from_cell, part.channels);
      put_run<kStream, 1>(from, at, part.channels, part.scale, part.shift);
      from += part.from_cell;
      at += to.cell;
    }
    return;
  }
  for (int64_t c = 0; c < part.channels; ++c) {
    const T* const source = from + c * part.from_channel;
    T* const target = at + c * to.channel;
    if (part.from_cell == 1 && to.cell == 1) {
      put_run<kStream, 0>(source, target, cells, part.scale + c, part.shift + c);
      continue;
    }
    for (int64_t i = 0; i < cells; ++i)
      target[i * to.cell] = preactivated(source[i * part.from_cell], part.scale[c], part.shift[c]);
  }
}

template <bool kStream, typename T>
HD void write_parts(const std::vector<Part<T>>& parts, const Place<T>& to, int64_t cells) {
  // The hardware follows one map by itself, but not short runs of many.
  const bool many = parts.size() > 1;
  const int64_t most = many ? kCells : cells;
  for (int64_t first = 0; first < cells; first += most) {
    for (const Part<T>& part : parts)
      write_part<kStream>(part, part.from + first * part.from_cell, to,
                          to.at + part.to + first * to.cell, min64(most, cells - first), many);
  }
}

#define BACKSIGHT_PREACTIVATION_CLONES(T)                                             \
  BACKSIGHT_CLONES void write(const std::vector<Part<T>>& parts, const Place<T>& to,  \
                              int64_t cells) {                                        \
    write_parts<false>(parts, to, cells);                                             \
  }                                                                                   \
  BACKSIGHT_CLONES void stream(const std::vector<Part<T>>& parts, const Place<T>& to, \
                               int64_t cells) {                                       \
    write_parts<true>(parts, to, cells);                                              \
  }
BACKSIGHT_PREACTIVATION_CLONES(double)
BACKSIGHT_PREACTIVATION_CLONES(float)
BACKSIGHT_PREACTIVATION_CLONES(Half)
BACKSIGHT_PREACTIVATION_CLONES(BFloat16)
#undef BACKSIGHT_PREACTIVATION_CLONES

// The cells of all maps as few axes: neighbours that every map steps through evenly are one. The
// batch is an axis of cells where channels are last.
class Cells {
 public:
  Cells(const std::vector<View>& maps, const View& out, bool with_batch) {
    for (int axis = with_batch ? -1 : 0; axis < kAxes; ++axis) {
      const int64_t size = axis < 0 ? out.n : out.size[axis];
      if (size == 1) continue;
      std::vector<int64_t> stride;
      for (const View& map : maps) stride.push_back(axis < 0 ? map.stride_n : map.stride[axis]);
      bool even = !axes_.empty();
      for (size_t i = 0; even && i < maps.size(); ++i)
        even = axes_.back().stride[i] == size * stride[i];
      if (even) {
        axes_.back() = {axes_.back().size * size, std::move(stride)};
      } else {
        axes_.push_back({size, std::move(stride)});
      }
    }
    if (axes_.empty()) axes_.push_back({1, std::vector<int64_t>(maps.size(), 1)});
  }

  // How many cells from this one on lie evenly, that far apart.
  int64_t run(int64_t cell) const { return axes_.back().size - cell % axes_.back().size; }
  int64_t stride(size_t map) const { return axes_.back().stride[map]; }

  // Elements from a map's first cell to this one.
  int64_t offset(size_t map, int64_t cell) const {
    int64_t offset = 0;
    for (size_t i = axes_.size(); i-- > 0; cell /= axes_[i].size)
      offset += cell % axes_[i].size * axes_[i].stride[map];
    return offset;
  }

 private:
  struct Axis {
    int64_t size;
    std::vector<int64_t> stride;  // of each map
  };
  std::vector<Axis> axes_;
};

// The output from some element on. A small one is written as it is, a large one past the caches:
// line by line where parts are whole lines, else by way of a buffer.
template <typename T>
class Output {
 public:
  Output(T* at, bool large, bool lines, int64_t width)
      : at_(at),
        how_(large ? (lines ? kLines : kBuffered) : kPlain),
        most_(how_ == kBuffered ? std::max(int64_t{1}, kBuffer / width) : INT64_MAX),
        writer_(reinterpret_cast<char*>(at)) {
    if (how_ == kBuffered) buffer_.resize(static_cast<size_t>(most_ * width));
  }

  // How many cells, each `width` elements wide, may be written at a time.
  int64_t most() const { return most_; }

  // Writes the next `elements`, which are `cells` of these parts.
  void add(const std::vector<Part<T>>& parts, int64_t cell, int64_t channel, int64_t cells,
           int64_t elements) {
    const Place<T> to{how_ == kBuffered ? buffer_.data() : at_, cell, channel};
    if (how_ == kLines) {
      stream(parts, to, cells);
    } else {
      write(parts, to, cells);
    }
    if (how_ == kBuffered)
      writer_.template copy<false>(reinterpret_cast<const char*>(buffer_.data()),
                                   elements * int64_t{sizeof(T)});
    at_ += elements;
  }

  // Must be called once, last.
  void finish() {
    if (how_ != kPlain) writer_.finish();
  }

 private:
  static constexpr int64_t kBuffer = (16 << 10) / int64_t{sizeof(T)};

  T* at_;
  enum { kPlain, kLines, kBuffered } how_;
  int64_t most_;
  std::vector<T> buffer_;
  Writer<true> writer_;
};

template <typename T>
class Preactivation {
 public:
  explicit Preactivation(const PreactivationParams& p)
      : p_(p),
        last_(channels_last(p.out)),
        plane_(p.out.size[0] * p.out.size[1] * p.out.size[2]),
        cells_(p.maps, p.out, last_) {
    for (const View& map : p.maps) {
      first_.push_back(channels_);
      channels_ += map.c;
    }
    bytes_ = p.out.n * plane_ * channels_ * int64_t{sizeof(T)};
  }

  void run(int threads) const {
    if (bytes_ == 0) return;
    parallel_chunks(p_.out.n * plane_ * (last_ ? 1 : channels_), bytes_, threads,
                    [&](int64_t begin, int64_t end) {
                      last_ ? write_cells(begin, end) : write_elements(begin, end);
                    });
  }

 private:
  // Cells [begin, end) of the batch, all channels of each.
  void write_cells(int64_t begin, int64_t end) const {
    Output<T> out(data() + begin * channels_, bytes_ >= kStreamBytes, is_lines(), channels_);
    std::vector<Part<T>> parts;
    while (begin < end) {
      const int64_t count = std::min({cells_.run(begin), end - begin, out.most()});
      parts.clear();
      for (size_t i = 0; i < p_.maps.size(); ++i)
        if (p_.maps[i].c > 0) parts.push_back(part(i, 0, p_.maps[i].c, cells_.offset(i, begin)));
      out.add(parts, channels_, 1, count, count * channels_);
      begin += count;
    }
    out.finish();
  }

  // Elements [begin, end), the cells of one channel after those of another.
  void write_elements(int64_t begin, int64_t end) const {
    Output<T> out(data() + begin, bytes_ >= kStreamBytes, true, 1);
    std::vector<Part<T>> parts;
    while (begin < end) {
      const int64_t at = begin % plane_, plane = begin / plane_;
      const int64_t n = plane / channels_, c = plane % channels_;
      const auto next = std::upper_bound(first_.begin(), first_.end(), c);
      const size_t i = static_cast<size_t>(next - first_.begin()) - 1;
      const int64_t channel = c - first_[i];
      const int64_t count = std::min({cells_.run(at), end - begin, out.most()});
      int64_t channels = 1;
      if (count == plane_)  // small planes, several at a time
        channels = std::min({p_.maps[i].c - channel, (end - begin) / plane_, out.most() / plane_});
      parts.assign(1, part(i, channel, channels, n * p_.maps[i].stride_n + cells_.offset(i, at)));
      out.add(parts, 1, plane_, count, count * channels);
      begin += count * channels;
    }
    out.finish();
  }

  // `offset` elements from the map's start is the cell of its channel 0.
  Part<T> part(size_t i, int64_t channel, int64_t channels, int64_t offset) const {
    const View& map = p_.maps[i];
    const int64_t c = first_[i] + channel;
    const auto from = reinterpret_cast<const T*>(map.data) + offset + channel * map.stride_c;
    return {from,
            cells_.stride(i),
            map.stride_c,
            last_ ? c : 0,
            channels,
            reinterpret_cast<const Widened<T>*>(p_.scale) + c,
            reinterpret_cast<const Widened<T>*>(p_.shift) + c};
  }

  // Whether channels lie side by side everywhere, and each map writes whole lines.
  bool is_lines() const {
    bool lines = reinterpret_cast<uintptr_t>(p_.out.data) % kLine == 0;
    for (const View& map : p_.maps)
      lines = lines && map.stride_c == 1 && map.c * int64_t{sizeof(T)} % kLine == 0;
    return lines;
  }

  T* data() const { return reinterpret_cast<T*>(p_.out.data); }

  const PreactivationParams& p_;
  bool last_;
  int64_t plane_;  // cells
  Cells cells_;
  std::vector<int64_t> first_;  // channel of each map
  int64_t channels_ = 0, bytes_;
};

}  // namespace

void preactivation(const PreactivationParams& p, int threads) {
  with_element(p.dtype, [&](auto element) { Preactivation<decltype(element)>(p).run(threads); });
}

}  // namespace backsight::cpu

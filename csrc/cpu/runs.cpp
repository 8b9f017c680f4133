#include "cpu/runs.h"

#include "core/interval.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

constexpr int64_t kSlack = 31;  // bytes that a loose copy may read too many

// Whether the output's channels lie next to each other in memory.
bool is_channels_last(const View& out) { return out.stride_c == 1 && out.c > 1; }

// One past the last byte of v.
const char* end_of(const View& v, int64_t element_size) {
  int64_t last = (v.n - 1) * v.stride_n + (v.c - 1) * v.stride_c;
  for (int axis = 0; axis < kAxes; ++axis) last += (v.size[axis] - 1) * v.stride[axis];
  return v.data + (last + 1) * element_size;
}

template <typename T, bool kStream>
HD void strided(Writer<kStream>& out, const Run& run, const char* from, int64_t width) {
  const T* cell = reinterpret_cast<const T*>(from);
  const int64_t cells = run.bytes / (width * static_cast<int64_t>(sizeof(T)));
  if (width == 1) return out.gather(cell, cells, run.stride);
  for (int64_t i = 0; i < cells; ++i) out.gather(cell + i * run.stride, width, run.stride_c);
}

// Runs are short and scattered, which no hardware prefetcher follows: so ask for each a few early.
class Ahead {
 public:
  HD Ahead(const Run* first, const Run* last, int64_t c)
      : first_(first), last_(last), run_(first), c_(c) {
    for (int i = 0; i < kRuns; ++i) prefetch_next();
  }

  HD void prefetch_next() {
    const char* from = run_->from + c_ * run_->step;
    const int64_t bytes = min64(run_->bytes, kBytes);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    if (++run_ == last_) run_ = first_, ++c_;
  }

 private:
  static constexpr int kRuns = 32;
  static constexpr int64_t kBytes = 512;
  const Run *first_, *last_, *run_;
  int64_t c_;
};

template <bool kStream>
HD void replay(Writer<kStream>& out, const Runs& runs, int64_t begin, int64_t end) {
  const Run* const first = runs.list().data();
  const Run* const last = first + runs.list().size();
  Ahead ahead(first, last, begin);
  for (int64_t c = begin; c < end; ++c) {
    for (const Run* run = first; run != last; ++run) {
      ahead.prefetch_next();
      const char* from = run->from + c * run->step;
      switch (run->kind) {
        case Run::kLoose:
          out.template copy<true>(from, run->bytes);
          break;
        case Run::kExact:
          out.template copy<false>(from, run->bytes);
          break;
        case Run::kFill:
          out.fill(from, runs.element_size(), run->bytes);
          break;
        case Run::kStrided:
          switch (runs.element_size()) {
            case 2:
              strided<uint16_t>(out, *run, from, runs.width());
              break;
            case 4:
              strided<uint32_t>(out, *run, from, runs.width());
              break;
            default:
              strided<uint64_t>(out, *run, from, runs.width());
              break;
          }
      }
    }
  }
}

// Planes [begin, end) of what `runs` describes.
BACKSIGHT_CLONES void write_planes(Writer<true>& out, const Runs& runs, int64_t begin,
                                   int64_t end) {
  replay(out, runs, begin, end);
}
BACKSIGHT_CLONES void write_planes(Writer<false>& out, const Runs& runs, int64_t begin,
                                   int64_t end) {
  replay(out, runs, begin, end);
}

// Rows [begin, end) of the output, counted in the order in which they lie in memory.
template <bool kStream>
void write_chunk(const View& out, int64_t element_size, int64_t begin, int64_t end,
                 const Describe& describe) {
  const int64_t planes = is_channels_last(out) ? 1 : out.c;
  const int64_t rows = out.size[0] * out.size[1];
  Runs runs(out, element_size);
  Writer<kStream> writer(out.data + begin * out.size[2] * runs.width() * element_size);
  while (begin < end) {
    const int64_t plane = begin / rows, c = plane % planes;
    const int64_t from = begin % rows;
    const int64_t to = min64(rows, from + end - begin);
    // Whole planes of one entry share their runs; the first and last of a chunk may be cut.
    const int64_t count = to - from < rows ? 1 : min64(planes - c, (end - begin) / rows);
    runs.clear();
    describe(runs, plane / planes, from, to);
    write_planes(writer, runs, c, c + count);
    begin += count * (to - from);
  }
  writer.finish();
}

}  // namespace

Runs::Runs(const View& out, int64_t element_size)
    : element_size_(element_size),
      channels_last_(is_channels_last(out)),
      width_(channels_last_ ? out.c : 1),
      planes_(channels_last_ ? 1 : out.c) {}

void Runs::fill(const void* value, int64_t cells) {
  add({Run::kFill, cells * width_ * element_size_, static_cast<const char*>(value), 0, 0, 0});
}

void Runs::copy(const View& v, int64_t n, int64_t z, int64_t y, int64_t x, int64_t cells) {
  if (cells == 0) return;
  const int64_t stride = v.stride[2];
  const char* from = v.data + (row_offset(v, n, 0, z, y) + x * stride) * element_size_;
  Run run{Run::kStrided, cells * width_ * element_size_, from, v.stride_c * element_size_, stride,
          v.stride_c};
  if (channels_last_ ? v.stride_c == 1 && stride == v.c : stride == 1) {
    const char* end = from + run.bytes + (planes_ - 1) * run.step;
    run.kind = end + kSlack <= end_of(v, element_size_) ? Run::kLoose : Run::kExact;
  } else if (stride == 0 && (width_ == 1 || v.stride_c == 0)) {
    run.kind = Run::kFill;
  }
  add(run);
}

void Runs::add(const Run& run) {
  if (run.bytes == 0) return;
  if (!runs_.empty() && run.kind != Run::kStrided) {
    Run& before = runs_.back();
    const char* next = before.from + (run.kind == Run::kFill ? 0 : before.bytes);
    if (before.kind == run.kind && before.step == run.step && next == run.from) {
      before.bytes += run.bytes;
      return;
    }
  }
  runs_.push_back(run);
}

void write_rows(const View& out, int64_t element_size, int threads, const Describe& describe) {
  const int64_t width = is_channels_last(out) ? out.c : 1;
  const int64_t rows = out.n * (out.c / width) * out.size[0] * out.size[1];
  const int64_t bytes = rows * out.size[2] * width * element_size;
  if (bytes == 0) return;
  parallel_chunks(rows, bytes, threads, [&](int64_t begin, int64_t end) {
    if (bytes >= kStreamBytes) {
      write_chunk<true>(out, element_size, begin, end, describe);
    } else {
      write_chunk<false>(out, element_size, begin, end, describe);
    }
  });
}

}  // namespace backsight::cpu

#include "cpu/runs.h"

#include "core/interval.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/writer.h"

namespace backsight::cpu {
namespace {

constexpr int64_t kSlack = 31;  // bytes that a loose copy may read too many

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
    int64_t bytes = 0;
    for (int i = 0; i < kRuns && bytes < kDistance; ++i) bytes += prefetch_next();
  }

  // Returns how many bytes the run asked for writes, as far as they count here.
  HD int64_t prefetch_next() {
    const Run& run = *run_;
    const int64_t bytes = min64(run.bytes, kBytes);
    if (run.kind == Run::kLoose || run.kind == Run::kExact) {
      const char* from = run.from + c_ * run.step;
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    }
    if (++run_ == last_) run_ = first_, ++c_;
    return bytes;
  }

 private:
  static constexpr int kRuns = 32;  // at most
  static constexpr int64_t kDistance = 8192;
  static constexpr int64_t kBytes = 1024;  // of a run; the hardware follows longer ones
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
        case Run::kLoose: out.template copy<true>(from, run->bytes); break;
        case Run::kExact: out.template copy<false>(from, run->bytes); break;
        case Run::kFill: out.fill(from, runs.element_size(), run->bytes); break;
        case Run::kConstant:
          out.fill(reinterpret_cast<const char*>(&run->value), runs.element_size(), run->bytes);
          break;
        case Run::kStrided:
          switch (runs.element_size()) {
            case 2: strided<uint16_t>(out, *run, from, runs.width()); break;
            case 4: strided<uint32_t>(out, *run, from, runs.width()); break;
            default: strided<uint64_t>(out, *run, from, runs.width()); break;
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
  const int64_t planes = channels_last(out) ? 1 : out.c;
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

// Whether `next` goes on where `run` ends, so that one run will do.
bool follows(const Run& run, const Run& next) {
  if (run.kind != next.kind || run.step != next.step) return false;
  switch (run.kind) {
    case Run::kLoose:
    case Run::kExact: return run.from + run.bytes == next.from;
    case Run::kFill: return run.from == next.from;
    case Run::kConstant: return run.value == next.value;
    case Run::kStrided: return false;
  }
  return false;
}

}  // namespace

Runs::Runs(const View& out, int64_t element_size)
    : element_size_(element_size),
      channels_last_(backsight::channels_last(out)),
      width_(channels_last_ ? out.c : 1),
      planes_(channels_last_ ? 1 : out.c) {}

void Runs::add(const Piece& piece, int64_t cells) {
  if (cells == 0) return;
  Run run;
  run.kind = Run::kStrided;
  run.bytes = cells * width_ * element_size_;
  run.from = piece.from;
  run.step = piece.stride_c * element_size_;
  run.value = piece.value;
  run.stride = piece.stride;
  run.stride_c = piece.stride_c;
  if (piece.from == nullptr) {
    run.kind = Run::kConstant;
  } else if (channels_last_ ? piece.stride_c == 1 && piece.stride == width_ : piece.stride == 1) {
    const char* end = piece.from + run.bytes + (planes_ - 1) * run.step;
    run.kind = end + kSlack <= piece.limit ? Run::kLoose : Run::kExact;
  } else if (piece.stride == 0 && (!channels_last_ || piece.stride_c == 0)) {
    run.kind = Run::kFill;
  }
  if (!runs_.empty() && follows(runs_.back(), run)) {
    runs_.back().bytes += run.bytes;
  } else {
    runs_.push_back(run);
  }
}

void write_rows(const View& out, int64_t element_size, int threads, const Describe& describe) {
  const int64_t width = channels_last(out) ? out.c : 1;
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

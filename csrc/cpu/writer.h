// Writes an output front to back, in pieces of any length.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/hd.h"

namespace backsight::cpu {

// Outputs at least this large do not stay in the cache until they are read, so they bypass it: an
// ordinary store first fetches the line it overwrites, half again the traffic that a copy needs.
constexpr int64_t kStreamBytes = 32 << 20;

// 32 bytes at any address: one AVX2 register, or two of the baseline's.
typedef char Vector __attribute__((vector_size(32), aligned(1), may_alias));

HD void copy_vector(char* to, const char* from) {
  *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(from);
}

// Copies whole vectors of 32 bytes: reads and writes up to 31 bytes more than asked.
HD void copy_loosely(char* to, const char* from, int64_t bytes) {
  int64_t i = 0;
  do {
    copy_vector(to + i, from + i);
    i += 32;
  } while (i < bytes);
}

// Reads exactly `bytes`; short pieces without a call.
HD void copy_exactly(char* to, const char* from, int64_t bytes) {
  if (bytes >= 32) {
    copy_loosely(to, from, bytes & ~int64_t{31});
    copy_vector(to + bytes - 32, from + bytes - 32);  // overlaps what is already there
  } else if (bytes >= 16) {
    memcpy(to, from, 16);
    memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else if (bytes >= 8) {
    memcpy(to, from, 8);
    memcpy(to + bytes - 8, from + bytes - 8, 8);
  } else {
    for (int64_t i = 0; i < bytes; i += 2) memcpy(to + i, from + i, 2);  // elements are even-sized
  }
}

constexpr int64_t kLine = 64;  // bytes of a cache line

// One line past the caches, to its place in memory. What was streamed is in order with other stores
// only behind an _mm_sfence.
HD void stream_line(char* to, const char* from) {
#if defined(__SSE2__)
  for (int64_t k = 0; k < kLine; k += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + k),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k)));
#else
  memcpy(to, from, kLine);
#endif
}

// Short pieces gather in a buffer in the L1 cache; whole cache lines leave it, past the caches if
// kStream. Long pieces go straight to the output.
template <bool kStream>
class Writer {
 public:
  explicit Writer(char* out)
      : head_(static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kLine)),
        used_(head_),
        line_(out - head_) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // kLoose promises that 31 bytes past the piece may be read.
  template <bool kLoose>
  HD void copy(const char* from, int64_t bytes) {
    if (bytes <= kPiece) {
      char* to = take(bytes);
      if (kLoose) {
        copy_loosely(to, from, bytes);
      } else {
        copy_exactly(to, from, bytes);
      }
      return;
    }
    const int64_t first = (kLine - used_ % kLine) % kLine;
    copy_exactly(take(first), from, first);
    flush();
    const int64_t whole = (bytes - first) / kLine * kLine;
    put(from + first, 0, whole);
    line_ += whole;
    const int64_t last = bytes - first - whole;
    copy_exactly(take(last), from + first + whole, last);
  }

  // `count` elements that lie `stride` elements apart.
  template <typename T>
  HD void gather(const T* from, int64_t count, int64_t stride) {
    constexpr int64_t kMost = kPiece / static_cast<int64_t>(sizeof(T));
    while (count > 0) {
      const int64_t n = count < kMost ? count : kMost;
      char* to = take(n * static_cast<int64_t>(sizeof(T)));
      for (int64_t i = 0; i < n; ++i)
        memcpy(to + i * static_cast<int64_t>(sizeof(T)), from + i * stride, sizeof(T));
      from += n * stride;
      count -= n;
    }
  }

  // Copies of the element at `value` until `bytes` are full.
  HD void fill(const char* value, int64_t element_size, int64_t bytes) {
    const uint64_t word = repeated(value, element_size);
    for (; bytes > kPiece; bytes -= kPiece) repeat(take(kPiece), word, kPiece);
    repeat(take(bytes), word, bytes);
  }

  // Must be called once, last.
  HD void finish() {
    flush();
    memcpy(line_ + head_, buffer_ + head_, static_cast<size_t>(used_ - head_));
#if defined(__SSE2__)
    if (kStream) _mm_sfence();
#endif
  }

 private:
  static constexpr int64_t kPiece = 512;
  static constexpr int64_t kBuffer = 4096;

  // The element, of 2, 4 or 8 bytes, as often as it fits a word.
  static HD uint64_t repeated(const char* value, int64_t element_size) {
    uint64_t word = 0;
    if (element_size == 2) {
      memcpy(&word, value, 2);
      return word * 0x0001000100010001u;
    }
    if (element_size == 4) {
      memcpy(&word, value, 4);
      return word * 0x0000000100000001u;
    }
    memcpy(&word, value, 8);
    return word;
  }

  static HD void repeat(char* to, uint64_t word, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 32)
      for (int64_t k = 0; k < 32; k += 8) memcpy(to + i + k, &word, 8);
  }

  // Where the next `bytes` (at most kPiece) go; up to kLine more may be written in passing.
  HD char* take(int64_t bytes) {
    if (used_ + bytes > kBuffer) flush();
    char* at = buffer_ + used_;
    used_ += bytes;
    return at;
  }

  // Sends the whole lines out; the rest, less than a line, moves to the front.
  HD void flush() {
    const int64_t whole = used_ / kLine * kLine;
    if (whole == 0) return;
    int64_t from = 0;
    if (head_ > 0) {  // the first line is shared with whatever lies before the output
      memcpy(line_ + head_, buffer_ + head_, static_cast<size_t>(kLine - head_));
      head_ = 0;
      from = kLine;
    }
    put(buffer_, from, whole);
    line_ += whole;
    used_ -= whole;
    memcpy(buffer_, buffer_ + whole, kLine);
  }

  // Bytes [begin, end) of `from`, whole lines, to the output.
  HD void put(const char* from, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLine) {
      if (kStream) {
        stream_line(line_ + i, from + i);
      } else {
        memcpy(line_ + i, from + i, kLine);
      }
    }
  }

  int64_t head_;  // bytes of buffer_ that lie before the output, until the first flush
  int64_t used_;  // bytes of buffer_ in use, head_ included
  char* line_;    // where buffer_[0] belongs, aligned
  alignas(64) char buffer_[kBuffer + kLine];
};

}  // namespace backsight::cpu

// Writes an output front to back, in pieces of any length.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/hd.h"

namespace backsight::cpu {

// Outputs at least this large do not stay in the cache until they are read, so they bypass it:
// an ordinary store first fetches the line it overwrites, half again as much traffic as a copy
// needs.
constexpr int64_t kStreamBytes = 32 << 20;

// Copies `bytes` without calling memcpy for the short pieces that windows are made of.
HD void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes >= 32) {
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) memcpy(to + i, from + i, 32);
    memcpy(to + bytes - 32, from + bytes - 32, 32);  // overlaps what is already there
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

// kStream: pieces gather in a buffer in the L1 cache, which leaves in whole cache lines past the
// caches. Otherwise they go straight to the output.
template <bool kStream>
class Writer {
 public:
  explicit Writer(char* out) : out_(out) {
    if (kStream) {
      head_ = used_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kLine);
      out_ -= head_;
    }
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  template <typename T>
  HD void copy(const T* from, int64_t count) {
    const char* bytes = reinterpret_cast<const char*>(from);
    int64_t left = count * static_cast<int64_t>(sizeof(T));
    for (; left > kPiece; left -= kPiece, bytes += kPiece) copy_bytes(take(kPiece), bytes, kPiece);
    copy_bytes(take(left), bytes, left);
  }

  template <typename T>
  HD void copy_strided(const T* from, int64_t count, int64_t stride) {
    constexpr int64_t kMost = kPiece / static_cast<int64_t>(sizeof(T));
    while (count > 0) {
      const int64_t n = count < kMost ? count : kMost;
      T* to = reinterpret_cast<T*>(take(n * static_cast<int64_t>(sizeof(T))));
      for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
      from += n * stride;
      count -= n;
    }
  }

  template <typename T>
  HD void fill(T value, int64_t count) {
    copy_strided(&value, count, 0);
  }

  // Must be called once, last.
  HD void finish() {
    if (!kStream) return;
    flush();
    if (used_ > head_) memcpy(out_ + head_, buffer_ + head_, static_cast<size_t>(used_ - head_));
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kPiece = 2048;
  static constexpr int64_t kBuffer = 8192;

  // Where the next `bytes` (at most kPiece) go.
  HD char* take(int64_t bytes) {
    if (!kStream) {
      char* at = out_;
      out_ += bytes;
      return at;
    }
    if (used_ + bytes > kBuffer) flush();
    char* at = buffer_ + used_;
    used_ += bytes;
    return at;
  }

  // Sends the whole lines out; the rest moves to the front.
  HD void flush() {
    const int64_t whole = used_ / kLine * kLine;
    if (whole == 0) return;
    int64_t i = 0;
    if (head_ > 0) {  // the first line is shared with whatever lies before the output
      memcpy(out_ + head_, buffer_ + head_, static_cast<size_t>(kLine - head_));
      head_ = 0;
      i = kLine;
    }
#if defined(__SSE2__)
    for (; i < whole; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(out_ + i),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(buffer_ + i)));
#else
    memcpy(out_ + i, buffer_ + i, static_cast<size_t>(whole - i));
#endif
    out_ += whole;
    used_ -= whole;
    memcpy(buffer_, buffer_ + whole, static_cast<size_t>(used_));
  }

  char* out_;         // streaming: aligned, where buffer_[0] belongs
  int64_t head_ = 0;  // streaming: bytes of buffer_ that lie before the output
  int64_t used_ = 0;
  alignas(64) char buffer_[kStream ? kBuffer : 1];
};

// Writes `cells` cells of a row from `from` on, `channels` elements each; a contiguous output takes
// its channels one by one, so there `channels` is 1.
template <typename T, bool kChannelsLast, bool kStream>
HD void write_cells(Writer<kStream>& out, const T* from, int64_t cells, int64_t stride,
                    int64_t channels, int64_t stride_c) {
  if (stride == 0 && (!kChannelsLast || stride_c == 0)) {
    out.fill(*from, cells * channels);
  } else if (!kChannelsLast) {
    if (stride == 1) {
      out.copy(from, cells);
    } else {
      out.copy_strided(from, cells, stride);
    }
  } else if (stride_c == 1 && stride == channels) {
    out.copy(from, cells * channels);
  } else {
    for (int64_t i = 0; i < cells; ++i) {
      if (stride_c == 1) {
        out.copy(from + i * stride, channels);
      } else {
        out.copy_strided(from + i * stride, channels, stride_c);
      }
    }
  }
}

}  // namespace backsight::cpu

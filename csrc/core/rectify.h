// rectify: which bits the cells of a line read, and the rule. See ops.h for the definition.
#pragma once

#include <type_traits>

#include "core/bits.h"
#include "core/hd.h"
#include "core/interval.h"
#include "core/rows.h"
#include "ops.h"

namespace backsight {

HD bool uses_bits(Rule rule) { return rule != Rule::kDeconvnet; }
HD bool uses_sign(Rule rule) { return rule != Rule::kGradient; }

// Calls run(std::integral_constant<Rule, rule>{}).
template <typename Run>
void with_rule(Rule rule, const Run& run) {
  switch (rule) {
    case Rule::kGradient: return run(std::integral_constant<Rule, Rule::kGradient>{});
    case Rule::kDeconvnet: return run(std::integral_constant<Rule, Rule::kDeconvnet>{});
    case Rule::kGuided: return run(std::integral_constant<Rule, Rule::kGuided>{});
  }
}

class Rectify {
 public:
  explicit Rectify(const RectifyParams& p) : p_(p) {}

  HD const RectifyParams& params() const { return p_; }

  // Lines along the last axis, in the order in which they lie in memory: of one channel, or of all
  // if those are last.
  HD int64_t planes() const { return p_.channels_last ? 1 : p_.c; }
  HD int64_t lines() const { return p_.n * planes() * p_.size[0] * p_.size[1]; }
  HD int64_t line_length() const { return p_.size[2] * (p_.channels_last ? p_.c : 1); }
  // Bytes of bits that a line has, counting each pixel's, or all cells'.
  HD int64_t line_groups() const {
    return p_.channels_last ? p_.size[2] * groups_of(p_.c) : groups_of(p_.size[2]);
  }

  // Where a line lies.
  struct Place {
    int64_t n, c, z, y;  // c is 0 if the channels are last
  };
  HD Place place(int64_t line) const {
    const int64_t slice = divide(line, p_.size[1]), y = line - slice * p_.size[1];
    const int64_t plane = divide(slice, p_.size[0]), z = slice - plane * p_.size[0];
    const int64_t n = divide(plane, planes());
    return {n, plane - n * planes(), z, y};
  }
  HD void next(Place* at) const {
    if (++at->y < p_.size[1]) return;
    at->y = 0;
    if (++at->z < p_.size[0]) return;
    at->z = 0;
    if (++at->c < planes()) return;
    at->c = 0;
    ++at->n;
  }

  // What covers one axis of a window, in the window's own coordinates.
  struct Axis {
    Interval inside, tile;
    int64_t shift;  // window coordinate + shift = coordinate in the tile
  };
  struct Window {
    Axis depth, height, width;
    int64_t map;  // whose bits it reads; -1: of none
  };
  HD Window window(int64_t n) const {
    const int64_t map = p_.base_index ? p_.base_index[n] : n;
    return {axis(n, 0), axis(n, 1), axis(n, 2), map < p_.maps ? map : -1};
  }

  // Cells of a line, along the last axis: `inside` the map, and of those whose bits are held. The
  // bits of cell x are at cell x + shift of `bits`, the tile's line.
  struct Line {
    Interval inside, held;
    const uint8_t* bits;
    int64_t shift;
  };
  HD Line line(const Window& w, const Place& at) const {
    Line line{{0, 0}, {0, 0}, nullptr, w.width.shift};
    if (!contains(w.depth.inside, at.z) || !contains(w.height.inside, at.y)) return line;
    line.inside = line.held = w.width.inside;
    if (!uses_bits(p_.rule)) return line;
    line.held = {0, 0};
    if (w.map < 0 || !contains(w.depth.tile, at.z) || !contains(w.height.tile, at.y)) return line;
    line.held.lo = max64(w.width.inside.lo, w.width.tile.lo);
    line.held.hi = max64(line.held.lo, min64(w.width.inside.hi, w.width.tile.hi));
    const int64_t slice = (w.map * planes() + at.c) * p_.tile[0] + at.z + w.depth.shift;
    line.bits = p_.bits + (slice * p_.tile[1] + at.y + w.height.shift) * bytes_of_line();
    return line;
  }
  HD Line line(int64_t i) const {
    const Place at = place(i);
    return line(window(at.n), at);
  }

  // Group `group` of line i, as counted by line_groups().
  template <typename T, bool kWhole>
  HD void group(int64_t i, int64_t group) const {
    using Int = typename Pattern<T>::Int;
    const Line line = this->line(i);
    const int64_t per_pixel = groups_of(p_.c);
    const int64_t x = p_.channels_last ? divide(group, per_pixel) : group * kGroup;
    const int64_t c = p_.channels_last ? (group - x * per_pixel) * kGroup : 0;
    const int64_t count = min64(kGroup, p_.channels_last ? p_.c - c : p_.size[2] - x);
    unsigned keep, missing;
    if (p_.channels_last) {
      const bool held = contains(line.held, x);
      keep = !held                ? 0
             : uses_bits(p_.rule) ? line.bits[(x + line.shift) * per_pixel + c / kGroup]
                                  : 0xffu;
      missing = contains(line.inside, x) && !held ? 0xffu : 0;
    } else {
      keep = bit_range(line.held.lo - x, line.held.hi - x);
      missing = bit_range(line.inside.lo - x, line.inside.hi - x) & ~keep;
      if (keep != 0 && uses_bits(p_.rule)) {
        const int64_t first = max64(line.held.lo, x), end = min64(line.held.hi, x + kGroup);
        keep &= read_bits(line.bits, first + line.shift, end - first) << (first - x);
      }
    }
    const int64_t at = i * line_length() + (p_.channels_last ? x * p_.c + c : x);
    Int r[kGroup];
    load_group<kWhole>(reinterpret_cast<const Int*>(p_.grad) + at, count, r);
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = 0; k < kGroup; ++k) {
      const bool kept = (keep >> k & 1) && (!uses_sign(p_.rule) || stays<T>(r[k]));
      r[k] = kept ? r[k] : (missing >> k & 1) ? Pattern<T>::kNaN : Int{0};
    }
    store_group<kWhole>(reinterpret_cast<Int*>(p_.out) + at, count, r);
  }

  const uint8_t* end_of_bits() const {
    if (!uses_bits(p_.rule)) return nullptr;
    return p_.bits + p_.maps * planes() * p_.tile[0] * p_.tile[1] * bytes_of_line();
  }

  // Whether every group is eight elements at a multiple of 16 bytes.
  bool whole_groups() const {
    const auto aligned = [](const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
    return (p_.channels_last ? p_.c : p_.size[2]) % kGroup == 0 && aligned(p_.grad) &&
           aligned(p_.out);
  }

 private:
  HD Axis axis(int64_t n, int d) const {
    const int64_t size = p_.size[d];
    if (p_.base_index == nullptr) return {{0, size}, {0, size}, 0};
    const int column = d - (kAxes - p_.dims);
    const int64_t window_at = column < 0 ? 0 : p_.window_at[n * p_.dims + column];
    const int64_t shift = window_at - p_.base_at[d];
    return {clip(-window_at, p_.extent[d] - window_at, size),
            clip(-shift, p_.tile[d] - shift, size), shift};
  }

  HD int64_t bytes_of_line() const {
    return p_.channels_last ? p_.tile[2] * groups_of(p_.c) : groups_of(p_.tile[2]);
  }

  RectifyParams p_;
};

}  // namespace backsight

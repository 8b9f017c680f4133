// What the CPU kernels say of switches that are errors.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "core/max_unpool.h"

namespace backsight::cpu {

// The first switch that is an error, if one is.
inline int64_t first_wrong(const MaxUnpoolParams& p) {
  int64_t wrong = 0;
  with_switch_type(p.switch_bytes, [&](auto s) {
    const auto look = [&](const Element& e, const int64_t (&o)[kAxes], int64_t, int64_t offset) {
      wrong = offset;
      return is_right(p, e, o, offset);
    };
    for (int64_t i = 0; see_switch<decltype(s), false>(p, i, look); ++i) continue;
  });
  return wrong;
}

// Set by any thread, looked at when all are done.
class Errors {
 public:
  void found(bool is_bad) {
    if (is_bad) bad_.store(true, std::memory_order_relaxed);
  }
  void report(const char* op, const MaxUnpoolParams& p) const {
    if (!bad_.load(std::memory_order_relaxed)) return;
    throw std::invalid_argument(
        std::string(op) + ": expected switches below " + std::to_string(cells_of(p.pool)) +
        ", each of a cell inside the map, got " + std::to_string(first_wrong(p)));
  }

 private:
  std::atomic<bool> bad_{false};
};

// Refuses a base_index of no map.
inline void check_base_index(const char* op, const MaxUnpoolParams& p) {
  for (int64_t b = 0; p.base_index && b < p.y.n; ++b)
    if (p.base_index[b] < 0 || p.base_index[b] >= p.switches.n)
      throw std::invalid_argument(std::string(op) + ": expected base_index in [0, " +
                                  std::to_string(p.switches.n) + "), got " +
                                  std::to_string(p.base_index[b]));
}

// Refuses both; the data of p.x is not looked at.
void check_switches(const char* op, const MaxUnpoolParams& p, int threads);

}  // namespace backsight::cpu

#include "cpu/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "cpu/isa.h"

namespace backsight::cpu {
namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

int usable_threads(int64_t n, int64_t bytes, int threads) {
  if (forked.load(std::memory_order_relaxed)) return 1;
  return static_cast<int>(std::min({int64_t{threads}, n, bytes / kGrain}));
}

const char* isa() {
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(BACKSIGHT_NO_CLONES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
#endif
  return "baseline";
}

}  // namespace backsight::cpu

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

namespace {
std::atomic<int> most_vector_bytes{64};

int widest_vectors() {
#if BACKSIGHT_HAS_TARGETS
  __builtin_cpu_init();
  const bool all = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
  return all ? 64 : __builtin_cpu_supports("avx2") ? 32 : 16;
#else
  return 16;
#endif
}
}  // namespace

int vector_bytes() {
  static const int widest = widest_vectors();
  return std::min(widest, most_vector_bytes.load(std::memory_order_relaxed));
}

void limit_vector_bytes(int bytes) { most_vector_bytes = bytes; }

const char* isa() {
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(BACKSIGHT_NO_CLONES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
#endif
  return "baseline";
}

}  // namespace backsight::cpu

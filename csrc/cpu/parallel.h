// Threads for the CPU kernels.
#pragma once

#include <cstdint>

namespace backsight::cpu {

// Calls work(begin, end) on disjoint chunks that cover [0, n), on at most `threads` OpenMP threads
// and on none beyond the caller's for fewer than kGrain bytes of work. In a forked child everything
// runs on the caller's thread, since OpenMP's pool does not survive a fork.
constexpr int64_t kGrain = 32 * 1024;

int usable_threads(int64_t n, int64_t bytes, int threads);

template <typename Work>
void parallel_chunks(int64_t n, int64_t bytes, int threads, const Work& work) {
  const int count = usable_threads(n, bytes, threads);
  if (count <= 1) {
    work(int64_t{0}, n);
    return;
  }
#pragma omp parallel for num_threads(count) schedule(static, 1)
  for (int t = 0; t < count; ++t)
    work(n / count * t + n % count * t / count, n / count * (t + 1) + n % count * (t + 1) / count);
}

}  // namespace backsight::cpu

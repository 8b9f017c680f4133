#include "core/max_unpool.h"
#include "cpu/parallel.h"
#include "cpu/switches.h"

namespace backsight::cpu {

void max_gather(const MaxUnpoolParams& p, int threads) {
  check_base_index("max_gather", p);
  const int64_t count = elements_of(p.y);
  Errors errors;
  with_element(p.dtype, [&](auto t) {
    with_switch_type(p.switch_bytes, [&](auto s) {
      using T = decltype(t);
      using Switch = decltype(s);
      const bool last = channels_last(p.y);
      parallel_chunks(count, count * 2 * int64_t{sizeof(T)}, threads,
                      [&](int64_t begin, int64_t end) {
                        bool good = true;
                        for (int64_t i = begin; i < end; ++i)
                          good &= last ? max_gather_element<T, Switch, true>(p, i)
                                       : max_gather_element<T, Switch, false>(p, i);
                        errors.found(!good);
                      });
    });
  });
  errors.report("max_gather", p);
}

}  // namespace backsight::cpu

// unpool_deconv: one output of it. See ops.h for the definition.
#pragma once

#include "core/max_unpool.h"
#include "core/preactivation.h"
#include "core/subpixel_deconv.h"
#include "ops.h"

namespace backsight {

// Element i of the output, in the order in which it lies in memory.
template <typename T, typename Switch, bool kChannelsLast>
HD void unpool_deconv_element(const UnpoolDeconvParams& p, int64_t i) {
  using Wide = Widened<T>;
  const MaxUnpoolParams& u = p.unpool;
  const SubpixelDeconvParams& d = p.deconv;
  const Pool& pool = d.pool;
  const Element e = element<kChannelsLast>(d.out, i);
  const int64_t onto = divide(d.out.c, d.groups), into = divide(d.x.c, d.groups);
  const int64_t group = divide(e.c, onto), first = group * into;
  Wide sum = 0;
  if (has_map(u, e.n)) {
    const Taps z = taps_at(d, 0, e.at[0]), y = taps_at(d, 1, e.at[1]), x = taps_at(d, 2, e.at[2]);
    const T* const values =
        reinterpret_cast<const T*>(u.y.data) + e.n * u.y.stride_n + first * u.y.stride_c;
    const Switch* const switches = reinterpret_cast<const Switch*>(u.switches.data) +
                                   map_of(u, e.n) * u.switches.stride_n +
                                   first * u.switches.stride_c;
    const int64_t from_input = onto * pool.kernel[0] * pool.kernel[1] * pool.kernel[2];
    const T* const weight = reinterpret_cast<const T*>(d.weight) + first * from_input +
                            (e.c - group * onto) * p.weight_channel;
    ROLLED
    for (int jz = z.count - 1; jz >= 0; --jz) {
      ROLLED
      for (int jy = y.count - 1; jy >= 0; --jy) {
        ROLLED
        for (int jx = x.count - 1; jx >= 0; --jx) {
          const int64_t g[kAxes] = {z.input - jz * pool.window_step[0] + first_cell(u, e.n, 0),
                                    y.input - jy * pool.window_step[1] + first_cell(u, e.n, 1),
                                    x.input - jx * pool.window_step[2] + first_cell(u, e.n, 2)};
          const CellWindows windows = windows_over_cell(u, e.n, g);
          const int64_t tap =
              offset_of(pool, z.first + jz * pool.cell_step[0], y.first + jy * pool.cell_step[1],
                        x.first + jx * pool.cell_step[2]);
          Wide partial = 0;
          ROLLED
          for (int64_t k = 0; k < into; ++k) {
            const Wide value = widen(unpooled(u, windows, values + k * u.y.stride_c,
                                              switches + k * u.switches.stride_c));
            if (value != 0)
              partial = multiply_add(
                  value, widen(weight[k * from_input + tap * p.weight_tap]), partial);
          }
          sum += partial;
        }
      }
    }
  }
  if (d.bias) sum += widen(reinterpret_cast<const T*>(d.bias)[e.c]);
  store(sum, reinterpret_cast<T*>(d.out.data) + i);
}

}  // namespace backsight

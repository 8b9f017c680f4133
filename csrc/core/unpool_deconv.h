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
  Wide sum = 0;
  ROLLED
  for (int tap = static_cast<int>(cells_of(d.pool)) - 1; tap >= 0; --tap) {
#ifdef __CUDA_ARCH__
    // Where i lies is worked out for each tap, and not kept in registers.
    asm volatile("" : "+l"(i));
#endif
    const Element e = element<kChannelsLast>(d.out, i);
    const Cell k = cell_of_offset(d.pool, tap);
    bool met = has_map(u, e.n);
    int64_t g[kAxes];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int axis = 0; axis < kAxes; ++axis) {
      const int64_t place = e.at[axis] + d.pool.padding[axis] - k.k[axis] * d.pool.dilation[axis];
      const int64_t input = divide(max64(place, 0), d.pool.stride[axis]);
      met = met && input * d.pool.stride[axis] == place && input < d.x.size[axis];
      g[axis] = met ? input + first_cell(u, e.n, axis) : 0;
    }
    if (!met) continue;
    const CellWindows windows = windows_over_cell(u, e.n, g);
    const int64_t onto = divide(d.out.c, d.groups), into = divide(d.x.c, d.groups);
    const int64_t group = divide(e.c, onto), first = group * into;
    const T* y = reinterpret_cast<const T*>(u.y.data) + e.n * u.y.stride_n + first * u.y.stride_c;
    const Switch* switches = reinterpret_cast<const Switch*>(u.switches.data) +
                             map_of(u, e.n) * u.switches.stride_n + first * u.switches.stride_c;
    const T* weight = reinterpret_cast<const T*>(d.weight) + first * p.weight_input +
                      (e.c - group * onto) * p.weight_channel + tap * p.weight_tap;
    Wide partial = 0;
    ROLLED
    for (int left = static_cast<int>(into); left > 0; --left) {
      const Wide value = widen(unpooled(u, windows, y, switches));
      if (value != 0) partial = multiply_add(value, widen(*weight), partial);
      y += u.y.stride_c;
      switches += u.switches.stride_c;
      weight += p.weight_input;
    }
    sum += partial;
  }
  if (d.bias) sum += widen(reinterpret_cast<const T*>(d.bias)[element<kChannelsLast>(d.out, i).c]);
  store(sum, reinterpret_cast<T*>(d.out.data) + i);
}

}  // namespace backsight

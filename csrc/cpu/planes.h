// Planes in the lanes of vectors, as the pools use them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/dtype.h"
#include "core/hd.h"

namespace backsight::cpu {

constexpr int64_t kMostLanes = 32;  // of any vector

// An integer as wide as T.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t,
                                 std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;

template <typename E>
void grow(std::vector<E>& v, int64_t count) {
  if (static_cast<int64_t>(v.size()) < count) v.resize(static_cast<size_t>(count));
}

}  // namespace backsight::cpu

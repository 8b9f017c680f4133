// Includes BACKSIGHT_VECTOR_CODE, the name of a file of code written in vectors, once for each
// instruction set: in the namespaces vectors16, vectors32 and vectors64, where kBytes is the
// vectors' size.

namespace vectors16 {
constexpr int kBytes = 16;
#include "cpu/vectors.h"
#include BACKSIGHT_VECTOR_CODE
}  // namespace vectors16

#if BACKSIGHT_HAS_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2")
namespace vectors32 {
constexpr int kBytes = 32;
#include "cpu/vectors.h"
#include BACKSIGHT_VECTOR_CODE
}  // namespace vectors32
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace vectors64 {
constexpr int kBytes = 64;
#include "cpu/vectors.h"
#include BACKSIGHT_VECTOR_CODE
}  // namespace vectors64
#pragma GCC pop_options
#endif

#undef BACKSIGHT_VECTOR_CODE

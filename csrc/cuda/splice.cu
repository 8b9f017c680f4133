#include "core/splice.h"
#include "cuda/rows.cuh"

namespace backsight::cuda {

void splice(void* stream, const SpliceParams& p) { write_rows(stream, SpliceRows(p), "splice"); }

}  // namespace backsight::cuda

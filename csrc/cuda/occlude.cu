#include "core/occlude.h"
#include "cuda/rows.cuh"

namespace backsight::cuda {

void occlude(void* stream, const OccludeParams& p) {
  write_rows(stream, OccludeRows(p), "occlude");
}

}  // namespace backsight::cuda

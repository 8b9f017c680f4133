#include "core/occlude.h"

#include "cpu/runs.h"

namespace backsight::cpu {

void occlude(const OccludeParams& p, int threads) { write_rows(OccludeRows(p), threads); }

}  // namespace backsight::cpu

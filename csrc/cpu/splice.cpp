#include "core/splice.h"

#include "cpu/runs.h"

namespace backsight::cpu {

void splice(const SpliceParams& p, int threads) { write_rows(SpliceRows(p), threads); }

}  // namespace backsight::cpu

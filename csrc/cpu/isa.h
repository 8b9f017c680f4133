// Function multiversioning: a function marked BACKSIGHT_CLONES is compiled, with all it inlines,
// for AVX-512, for AVX2 and for the baseline; the loader picks by the running CPU.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(BACKSIGHT_NO_CLONES)
#define BACKSIGHT_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), flatten))
#else
#define BACKSIGHT_CLONES
#endif

namespace backsight::cpu {

// The instruction set that BACKSIGHT_CLONES functions run with.
const char* isa();

}  // namespace backsight::cpu

// Function multiversioning: a function marked BACKSIGHT_CLONES is compiled, with all it inlines,
// for AVX-512, for AVX2 and for the baseline; the loader picks by the running CPU.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(BACKSIGHT_NO_CLONES)
#define BACKSIGHT_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), flatten))
#else
#define BACKSIGHT_CLONES
#endif

// Code written in vectors lies in a file of its own, which is included once for each instruction
// set, with `#pragma GCC target`: a compiler takes operations on vectors that the function's own
// instruction set lacks apart before it looks at who inlines the function.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define BACKSIGHT_HAS_TARGETS 1
#include <immintrin.h>
#else
#define BACKSIGHT_HAS_TARGETS 0
#endif

namespace backsight::cpu {

// Bytes of the widest vectors that the running CPU has for elements of all sizes: 64, 32 or 16.
int vector_bytes();

// Lets vector_bytes() be at most `bytes` from now on; for tests.
void limit_vector_bytes(int bytes);

// The instruction set that BACKSIGHT_CLONES functions run with.
const char* isa();

}  // namespace backsight::cpu

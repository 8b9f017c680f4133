// HD marks mathematics that runs on host and device alike.
#pragma once

#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#else
#define HD inline __attribute__((always_inline))
#endif

// Before a loop: not unrolled on the device, for the sake of its registers.
#ifdef __CUDA_ARCH__
#define ROLLED _Pragma("unroll 1")
#else
#define ROLLED
#endif

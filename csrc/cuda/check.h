// CUDA failures throw, saying what was expected and what came.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace backsight::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": expected success, got " +
                             cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
}

// To be called after every launch. Reports what the launch itself met, without synchronising.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace backsight::cuda

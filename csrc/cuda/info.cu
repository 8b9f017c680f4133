#include <cuda_runtime.h>

#include "cuda/check.h"
#include "ops.h"

namespace backsight::cuda {

Info info() {
  Info info{0, 0, ""};
  cudaRuntimeGetVersion(&info.runtime);
  cudaDriverGetVersion(&info.driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // the next launch is not to report this
    info.devices = std::string("none: ") + cudaGetErrorString(status);
    return info;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
    info.devices += std::string(i > 0 ? ", " : "") + properties.name + " (sm_" +
                    std::to_string(properties.major * 10 + properties.minor) + ")";
  }
  if (count == 0) info.devices = "none";
  return info;
}

}  // namespace backsight::cuda

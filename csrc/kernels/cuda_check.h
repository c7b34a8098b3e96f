// Turns the CUDA runtime's error codes into ie::Error. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace ie::kernels {

// For a launch that could not be queued; what goes wrong on the device shows at the next synchronization.
inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    IE_CHECK(error == cudaSuccess, kernel, ": ", cudaGetErrorString(error));
}

}  // namespace ie::kernels

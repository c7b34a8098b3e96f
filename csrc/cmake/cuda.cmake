# The device half of the kernels, with the CUDA runtime linked in, so that torch may bring another one.
set(CMAKE_CUDA_COMPILER ${IE_NVCC})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_STANDARD 20)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90)
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND CMAKE_CUDA_ARCHITECTURES 100)
endif()

add_library(ie_kernels_cuda STATIC csrc/kernels/adamw.cu csrc/kernels/checksum.cu csrc/kernels/exact_sum.cu
  csrc/kernels/square_sum.cu csrc/kernels/tree_sum.cu)
target_link_libraries(ie_kernels_cuda PUBLIC ie_core)
target_compile_options(ie_kernels_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 -fmad=false>)

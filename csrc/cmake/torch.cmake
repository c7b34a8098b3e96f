# The installed torch at IE_TORCH_DIR, without its own CMake package, which would search for a whole CUDA toolkit.
# Defines ie_torch, ie_torch_python (and ie_torch_cuda), IE_TORCH_VERSION and IE_WITH_CUDA, and sets the C++ ABI that torch was built with.
if(NOT EXISTS ${IE_TORCH_DIR}/version.py)
  message(FATAL_ERROR
    "No torch in ${IE_TORCH_DIR}. Install torch first, into the environment that you build for: pip install "
    "'torch>=2.13,<2.15'. If it is somewhere else, set IE_TORCH_DIR=/path/to/site-packages/torch.")
endif()
file(STRINGS ${IE_TORCH_DIR}/version.py version_line REGEX "^__version__")
string(REGEX REPLACE ".*= *['\"]([^'\"]+).*" "\\1" IE_TORCH_VERSION "${version_line}")

file(STRINGS ${IE_TORCH_DIR}/share/cmake/Torch/TorchConfig.cmake abi REGEX "_GLIBCXX_USE_CXX11_ABI=[01]" LIMIT_COUNT 1)
string(REGEX MATCH "_GLIBCXX_USE_CXX11_ABI=[01]" abi "${abi}")
add_compile_definitions(${abi})

function(ie_import_torch target)
  add_library(${target} INTERFACE)
  # No run path: Python imports torch first, which has these libraries loaded by then.
  foreach(library ${ARGN})
    target_link_libraries(${target} INTERFACE ${IE_TORCH_DIR}/lib/lib${library}.so)
  endforeach()
  target_include_directories(${target} SYSTEM INTERFACE
    ${IE_TORCH_DIR}/include ${IE_TORCH_DIR}/include/torch/csrc/api/include)
endfunction()

set(CMAKE_SKIP_RPATH ON)
ie_import_torch(ie_torch torch_cpu c10)
ie_import_torch(ie_torch_python torch_python torch) # for regions, which are Python callables

find_program(IE_NVCC nvcc)
if(IE_NVCC AND EXISTS ${IE_TORCH_DIR}/lib/libtorch_cuda.so)
  set(IE_WITH_CUDA 1)
  ie_import_torch(ie_torch_cuda torch_cuda)
endif()
message(STATUS "torch ${IE_TORCH_VERSION} in ${IE_TORCH_DIR}, CUDA kernels: ${IE_WITH_CUDA}")

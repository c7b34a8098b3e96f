// Marks math that host and device share, so that both run the same arithmetic. Device code is compiled with
// -fmad=false and host code with -ffp-contract=off: an a * b + c rounds twice everywhere, and bits are equal.
#pragma once

#if defined(__CUDACC__)
#define IE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define IE_HOST_DEVICE [[gnu::always_inline]] inline
#endif

struct CUstream_st;

namespace ie::kernels {

using Stream = CUstream_st*;  // what cuda_runtime.h calls cudaStream_t

}  // namespace ie::kernels

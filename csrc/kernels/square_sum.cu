#include "kernels/cuda_check.h"
#include "kernels/square_sum.h"

namespace ie::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // of a thread block; each folds one block of the buffer
constexpr int kWidth = kSumLanes / kWarp;
constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ double term(float x) {
    return static_cast<double>(x) * static_cast<double>(x);
}

__device__ double term(double partial) {
    return partial;
}

template <typename T>
struct alignas(16) Four {
    T x[kWidth];
};

// Steps 1 and 2 of the contract, by one warp: thread t holds lanes 4t to 4t + 3, so the folds by 64 to 4
// lanes go between threads and the last two stay inside thread 0, which returns the sum.
template <typename T>
__device__ double fold(const T* x, std::int64_t numel) {
    const int thread = threadIdx.x % kWarp;
    double lanes[kWidth] = {};
#pragma unroll 4
    for (std::int64_t i = thread * kWidth; i + kWidth <= numel; i += kSumLanes) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(x + i);
        for (int k = 0; k < kWidth; ++k) lanes[k] += term(four.x[k]);
    }
    const std::int64_t rest = numel / kWidth * kWidth;  // its row gives this group of four to one thread
    if (rest / kWidth % kWarp == thread) {
#pragma unroll
        for (int k = 0; k < kWidth - 1; ++k) {
            if (rest + k < numel) lanes[k] += term(x[rest + k]);
        }
    }
    for (int half = kWarp / 2; half > 0; half /= 2) {
        for (int k = 0; k < kWidth; ++k) lanes[k] += __shfl_down_sync(kAll, lanes[k], half);
    }
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

__global__ void __launch_bounds__(kWarp* kWarps)
    blocks_kernel(const float* x, std::int64_t numel, double* partials) {
    const std::int64_t first =
        (static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kSumBlock;
    if (first >= numel) return;
    const double sum = fold(x + first, min(kSumBlock, numel - first));
    if (threadIdx.x % kWarp == 0) partials[first / kSumBlock] = sum;
}

__global__ void __launch_bounds__(kWarp)
    total_kernel(const double* partials, std::int64_t count, double* result) {
    const double sum = fold(partials, count);
    if (threadIdx.x == 0) *result = sum;
}

}  // namespace

void square_sum_cuda(const float* x, std::int64_t numel, double* partials, double* result, Stream stream) {
    const auto grid = static_cast<unsigned>((num_blocks(numel) + kWarps - 1) / kWarps);
    if (grid > 0) blocks_kernel<<<grid, kWarp * kWarps, 0, stream>>>(x, numel, partials);
    total_kernel<<<1, kWarp, 0, stream>>>(partials, num_blocks(numel), result);
    check_launch("square_sum");
}

}  // namespace ie::kernels

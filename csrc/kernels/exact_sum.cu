#include <algorithm>

#include "kernels/cuda_check.h"
#include "kernels/exact_sum.h"

namespace ie::kernels {
namespace {

using Word = unsigned long long;  // what atomicAdd takes; two's complement, as the words

constexpr int kWarp = 32;
constexpr int kThreads = 256;     // each adds one block of squares at a time
constexpr int kMaxBlocks = 1024;  // thread blocks: each ends with up to kWords additions in device memory
constexpr unsigned kAll = 0xFFFFFFFFu;

__device__ double square(float x) {
    return static_cast<double>(x) * static_cast<double>(x);
}

// As ExactSum::add_squares on the host: from left to right.
__device__ double square_block(const float* x, std::int64_t numel) {
    double sum = 0;
    if (numel < ExactSum::kSquareBlock) {
        for (std::int64_t i = 0; i < numel; ++i) sum += square(x[i]);
        return sum;
    }
#pragma unroll
    for (int i = 0; i < ExactSum::kSquareBlock; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(x + i);
        sum += square(four.x);
        sum += square(four.y);
        sum += square(four.z);
        sum += square(four.w);
    }
    return sum;
}

// One term of each thread of a warp. Mostly all fall on the same words, because a word spans 32 powers of
// two; then one thread adds for all.
__device__ void add_warp(Word* sums, const ExactSum::Term& term) {
    const bool alike = __all_sync(kAll, term.word == __shfl_sync(kAll, term.word, 0));
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        std::int64_t part = term.parts[k];
        for (int half = alike ? kWarp / 2 : 0; half > 0; half /= 2) {
            part += __shfl_down_sync(kAll, part, half);
        }
        if (!alike || threadIdx.x % kWarp == 0) atomicAdd(sums + term.word + k, static_cast<Word>(part));
    }
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(std::int64_t* words, const float* x, std::int64_t numel) {
    __shared__ Word sums[ExactSum::kWords];
    for (int w = threadIdx.x; w < ExactSum::kWords; w += kThreads) sums[w] = 0;
    __syncthreads();
    constexpr std::int64_t width = ExactSum::kSquareBlock;
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * width;
    // the bound is a thread block's, so that warps stay whole
    for (std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * kThreads * width; base < numel;
         base += step) {
        const std::int64_t first = base + threadIdx.x * width;
        const double sum = first < numel ? square_block(x + first, min(width, numel - first)) : 0.0;
        add_warp(sums, ExactSum::term(sum));
    }
    __syncthreads();
    for (int w = threadIdx.x; w < ExactSum::kWords; w += kThreads) {
        if (sums[w] != 0) atomicAdd(reinterpret_cast<Word*>(words) + w, sums[w]);
    }
}

// One thread: a handful of values at the end of a step, and the carries.
__global__ void add_kernel(std::int64_t* words, const double* values, std::int64_t count) {
    ExactSum sum(words);
    for (std::int64_t i = 0; i < count; ++i) sum.add(values[i]);
    sum.carry();
}

__global__ void values_kernel(std::int64_t* words, double* values) {
    values[threadIdx.x] = ExactSum(words + threadIdx.x * ExactSum::kWords).value();
}

}  // namespace

void exact_add_cuda(std::int64_t* words, const double* values, std::int64_t count, Stream stream) {
    add_kernel<<<1, 1, 0, stream>>>(words, values, count);
    check_launch("exact_add");
}

void exact_add_squares_cuda(std::int64_t* words, const float* x, std::int64_t numel, Stream stream) {
    constexpr std::int64_t per_block = kThreads * ExactSum::kSquareBlock;
    const auto blocks = std::min<std::int64_t>((numel + per_block - 1) / per_block, kMaxBlocks);
    if (blocks > 0) squares_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(words, x, numel);
    add_kernel<<<1, 1, 0, stream>>>(words, nullptr, 0);
    check_launch("exact_add_squares");
}

void exact_values_cuda(std::int64_t* words, double* values, std::int64_t count, Stream stream) {
    if (count > 0) values_kernel<<<1, static_cast<unsigned>(count), 0, stream>>>(words, values);
    check_launch("exact_values");
}

}  // namespace ie::kernels

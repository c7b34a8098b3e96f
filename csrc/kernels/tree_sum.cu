#include <utility>

#include "kernels/cuda_check.h"
#include "kernels/tree_sum.h"

namespace ie::kernels {
namespace {

constexpr int kThreads = 256;
constexpr std::size_t kLoad = 16;  // bytes

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth < kLoad ? sizeof(T) * kWidth : kLoad) Some {
    T x[kWidth];
};

__device__ float widen(float value) {
    return value;
}

__device__ float widen(BFloat16 value) {
    return to_float(value);
}

// Row g of `out` becomes the tree over group g of the rows; a thread takes kWidth neighbouring elements, and
// all loops unroll, so that sums stay in registers.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    groups_kernel(float* out, const T* rows, std::int64_t num_rows, std::int64_t numel) {
    const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
    if (i >= numel) return;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kTreeGroup;
    const std::int64_t count = num_rows - first;
    Some<float, kWidth> sums[kTreeGroup];
#pragma unroll
    for (int row = 0; row < kTreeGroup; ++row) {
        if (row >= count) continue;
        const auto some = *reinterpret_cast<const Some<T, kWidth>*>(rows + (first + row) * numel + i);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sums[row].x[k] = widen(some.x[k]);
    }
#pragma unroll
    for (int step = 1; step < kTreeGroup; step *= 2) {
#pragma unroll
        for (int row = 0; row + step < kTreeGroup; row += 2 * step) {
            if (row + step >= count) continue;
#pragma unroll
            for (int k = 0; k < kWidth; ++k) sums[row].x[k] += sums[row + step].x[k];
        }
    }
    *reinterpret_cast<Some<float, kWidth>*>(out + blockIdx.y * numel + i) = sums[0];
}

template <typename T, int kWidth>
void add_groups(float* out, const T* rows, std::int64_t num_rows, std::int64_t numel, Stream stream) {
    const auto blocks = static_cast<unsigned>((numel + kThreads * kWidth - 1) / (kThreads * kWidth));
    const auto groups = static_cast<unsigned>(num_groups(num_rows));
    groups_kernel<T, kWidth><<<dim3(blocks, groups), kThreads, 0, stream>>>(out, rows, num_rows, numel);
    check_launch("tree_sum");
}

template <typename T>
void add_groups(float* out, const T* rows, std::int64_t num_rows, std::int64_t numel, Stream stream) {
    constexpr int kWidth = kLoad / sizeof(T);
    const bool aligned = numel % kWidth == 0;  // else rows start anywhere
    (aligned ? add_groups<T, kWidth> : add_groups<T, 1>)(out, rows, num_rows, numel, stream);
}

// Groups of groups are the whole tree: a level above, each group's sum is a row.
template <typename T>
void add_all(float* out, const T* rows, float* scratch, std::int64_t num_rows, std::int64_t numel,
             Stream stream) {
    if (numel == 0) return;
    if (num_rows <= kTreeGroup) return add_groups(out, rows, num_rows, numel, stream);
    add_groups(scratch, rows, num_rows, numel, stream);
    std::int64_t count = num_groups(num_rows);
    float* other = scratch + count * numel;
    for (; count > kTreeGroup; count = num_groups(count), std::swap(scratch, other)) {
        add_groups<float>(other, scratch, count, numel, stream);
    }
    add_groups<float>(out, scratch, count, numel, stream);
}

}  // namespace

void tree_sum_cuda(float* out, const float* rows, float* scratch, std::int64_t num_rows, std::int64_t numel,
                   Stream stream) {
    add_all(out, rows, scratch, num_rows, numel, stream);
}

void tree_sum_cuda(float* out, const BFloat16* rows, float* scratch, std::int64_t num_rows,
                   std::int64_t numel, Stream stream) {
    add_all(out, rows, scratch, num_rows, numel, stream);
}

}  // namespace ie::kernels

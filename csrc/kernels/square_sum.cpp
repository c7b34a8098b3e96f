#include "kernels/square_sum.h"

#include <algorithm>

namespace ie::kernels {
namespace {

IE_INLINE double term(float x) {
    return static_cast<double>(x) * static_cast<double>(x);
}

IE_INLINE double term(double partial) {
    return partial;
}

// Steps 1 and 2 of the contract.
template <typename T>
IE_INLINE void fold(const T* x, std::int64_t numel, double* sum) {
    double lanes[kSumLanes] = {};
    std::int64_t row = 0;
    for (; row + kSumLanes <= numel; row += kSumLanes) {
        for (int j = 0; j < kSumLanes; ++j) lanes[j] += term(x[row + j]);
    }
    for (int j = 0; row + j < numel; ++j) lanes[j] += term(x[row + j]);
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    *sum = lanes[0];
}

IE_INLINE void fold_blocks(const float* x, std::int64_t numel, double* partials, std::int64_t begin,
                           std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
        const std::int64_t first = block * kSumBlock;
        fold(x + first, std::min(kSumBlock, numel - first), partials + block);
    }
}

}  // namespace

void square_sum_blocks(const float* x, std::int64_t numel, double* partials, std::int64_t begin,
                       std::int64_t end, InstructionSet set) {
    run<fold_blocks>(set, x, numel, partials, begin, end);
}

double sum_partials(const double* partials, std::int64_t count) {
    double sum = 0;
    fold(partials, count, &sum);
    return sum;
}

}  // namespace ie::kernels

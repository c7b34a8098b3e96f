// Sum of squares of a flat fp32 buffer, accumulated in double in one fixed order, which is part of the
// contract:
//
//   1. The buffer is cut into blocks of 4096 elements. In a block, lane j of 128 adds elements j, j + 128,
//   ...
//   2. Lanes are folded in halves (j takes j + 64, then j + 32, ...) into the block's partial sum.
//   3. The partial sums are added in the same way: lanes over all of them, then halves.
//
// So the bits depend on the buffer alone, not on threads, instruction set or device. A square of an fp32 is
// exact in double. Memory-bound: reads 4 bytes per element. The caller owns the partial sums:
// num_blocks(numel) doubles.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/instruction_set.h"

namespace ie::kernels {

inline constexpr int kSumLanes = 128;
inline constexpr std::int64_t kSumBlock = 4096;

inline std::int64_t num_blocks(std::int64_t numel) {
    return (numel + kSumBlock - 1) / kSumBlock;
}

// Host: partial sums of blocks [begin, end) of x, into partials[begin, end).
void square_sum_blocks(const float* x, std::int64_t numel, double* partials, std::int64_t begin,
                       std::int64_t end, InstructionSet set = best_set());

// Host: the sum of all partial sums.
double sum_partials(const double* partials, std::int64_t count);

// Device: queued on `stream`; partials and result are device memory, x is 16-byte aligned.
void square_sum_cuda(const float* x, std::int64_t numel, double* partials, double* result, Stream stream);

}  // namespace ie::kernels

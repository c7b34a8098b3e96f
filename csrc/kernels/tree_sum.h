// Sum of rows in fp32, in one binary tree over the row number: ((0 + 1) + (2 + 3)) + ..., where a row without
// a partner moves up as it is. It is what the owner of a slice does with what the ranks sent, and the order
// is part of the contract: with power-of-two groups, sums of sums are the sum over all.
//
// Rows are fp32 or bf16, flat, one after the other: [num_rows, numel]. Memory-bound, in one pass: reads each
// row once and writes 4 bytes per element.
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/host_device.h"
#include "kernels/instruction_set.h"

namespace ie::kernels {

// Host; `out` is apart from the rows.
void tree_sum(float* out, const float* rows, std::int64_t num_rows, std::int64_t numel,
              InstructionSet set = best_set());
void tree_sum(float* out, const BFloat16* rows, std::int64_t num_rows, std::int64_t numel,
              InstructionSet set = best_set());

// Device: queued on `stream`, in passes that add groups of rows; rows and `out` are 16-byte aligned.
// `scratch` has room for scratch_rows(num_rows) rows of fp32.
inline constexpr std::int64_t kTreeGroup = 8;

inline std::int64_t num_groups(std::int64_t num_rows) {
    return (num_rows + kTreeGroup - 1) / kTreeGroup;
}

inline std::int64_t scratch_rows(std::int64_t num_rows) {
    return num_rows <= kTreeGroup ? 0 : num_groups(num_rows) + num_groups(num_groups(num_rows));
}

void tree_sum_cuda(float* out, const float* rows, float* scratch, std::int64_t num_rows, std::int64_t numel,
                   Stream stream);
void tree_sum_cuda(float* out, const BFloat16* rows, float* scratch, std::int64_t num_rows,
                   std::int64_t numel, Stream stream);

}  // namespace ie::kernels

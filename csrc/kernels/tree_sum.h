// Sum of rows in fp32, in one binary tree over the row number: ((0 + 1) + (2 + 3)) + ..., where a row without
// a partner moves up as it is. It is what the owner of a slice does with what the ranks sent, and the order
// is part of the contract: with power-of-two groups, sums of sums are the sum over all.
//
// Rows are fp32 or bf16, flat, one after the other: [num_rows, numel]. Memory-bound, in one pass: reads each
// row once and writes 4 bytes per element.
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/instruction_set.h"

namespace ie::kernels {

// Host; `out` is apart from the rows.
void tree_sum(float* out, const float* rows, std::int64_t num_rows, std::int64_t numel,
              InstructionSet set = best_set());
void tree_sum(float* out, const BFloat16* rows, std::int64_t num_rows, std::int64_t numel,
              InstructionSet set = best_set());

}  // namespace ie::kernels

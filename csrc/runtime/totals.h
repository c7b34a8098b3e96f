// What a step adds up over micro-batches and ranks: the loss, its count, whether some rank wants to stop, and
// the squares of the gradient. One small all-reduce of integers gives all four, with equal bits for every
// plan and number of ranks, because the sums are exact until they become doubles.
#pragma once

#include <ATen/ATen.h>

#include "core/layout.h"
#include "kernels/exact_sum.h"
#include "runtime/transfers.h"

namespace ie::runtime {

class Totals {
  public:
    enum Row : std::int64_t { kLossSum, kCount, kStop, kSquares, kNumRows };
    static_assert(kNumRows == core::kNumTotals && kernels::ExactSum::kWords == core::kWordsOfTotal,
                  "the Program says what a step's totals send");

    void reset() { words_.zero_(); }
    void add(Row row, double value);

    // The squares of a flat fp32 slice. In order: equal bits however a bucket is cut into slices.
    void add_squares(const at::Tensor& slice, bool in_order);

    // Over the ranks of the group, by way of the device that its backend needs.
    void sum_over(const Transfers& world, at::Device device);

    double operator[](Row row) const { return sum(row).value(); }
    at::Tensor tensor() const;  // [4] fp64, as the rows are numbered

    // The loss and the gradient are numbers, and something was counted.
    bool are_usable() const;

    // Makes a gradient sum the mean, no longer than `clip`, if that is not 0.
    double grad_scale(double clip) const;

  private:
    kernels::ExactSum sum(Row row) const {
        return kernels::ExactSum(words_.data_ptr<std::int64_t>() + row * kernels::ExactSum::kWords);
    }

    at::Tensor words_ = at::zeros({kNumRows, kernels::ExactSum::kWords}, at::kLong);
};

}  // namespace ie::runtime

// What a step adds up over micro-batches and ranks: the loss, its count, whether some rank wants to stop, and
// the squares of the gradient. One small all-reduce of integers gives all four, with equal bits for every
// plan and number of ranks, because the sums are exact until they become doubles. Everything stays on the
// device, also the decision whether to update, so that the host need not wait for it.
#pragma once

#include <ATen/ATen.h>

#include "core/layout.h"
#include "kernels/exact_sum.h"
#include "runtime/transfers.h"

namespace ie::runtime {

// What the mean loss and the gradient's norm may at most be for a step to update anything.
struct Limits {
    double loss, grad_norm;
};

class Totals {
  public:
    enum Row : std::int64_t { kLossSum, kCount, kStop, kSquares, kNumRows };
    static_assert(kNumRows == core::kNumTotals && kernels::ExactSum::kWords == core::kWordsOfTotal,
                  "the Program says what a step's totals send");

    explicit Totals(at::Device device);

    void reset() { words_.zero_(); }
    void add(Row row, double value);
    void add(Row row, const at::Tensor& values);  // of any shape

    // The squares of a flat fp32 slice. In order: equal bits however a bucket is cut into slices.
    void add_squares(const at::Tensor& slice, bool in_order);

    void sum_over(const Transfers& world) { world.sum_(words_); }

    at::Tensor tensor() const;  // [4] fp64, as the rows are numbered

    // [1] fp32: makes a gradient sum the mean, no longer than `clip`, if that is not 0. Is 0 where there must
    // be no update: the loss or the gradient is not a number or above its limit, or nothing was counted.
    at::Tensor grad_scale(double clip, const Limits& limits) const;

  private:
    at::Tensor words_;  // int64 [rows, words of a sum]
};

}  // namespace ie::runtime

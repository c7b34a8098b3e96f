#include "runtime/totals.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "kernels/exact_sum.h"

namespace ie::runtime {
namespace {

template <typename Signature, typename... Args>
auto call(const char* op, const Args&... args) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(op, "").typed<Signature>().call(args...);
}

}  // namespace

using Add = void(const at::Tensor&, const at::Tensor&);
using Map = at::Tensor(const at::Tensor&);

Totals::Totals(at::Device device)
    : words_(at::zeros({kNumRows, kernels::ExactSum::kWords}, at::TensorOptions(at::kLong).device(device))) {}

void Totals::add(Row row, double value) {
    add(row, at::full({1}, value, words_.options().dtype(at::kDouble)));
}

void Totals::add(Row row, const at::Tensor& values) {
    call<Add>("internevo::exact_add_", words_[row], values.to(words_.options().dtype(at::kDouble)));
}

void Totals::add_squares(const at::Tensor& slice, bool in_order) {
    if (!in_order) return add(kSquares, call<Map>("internevo::square_sum", slice));
    call<Add>("internevo::exact_add_squares_", words_[kSquares], slice);
}

at::Tensor Totals::tensor() const {
    return call<Map>("internevo::exact_values_", words_);
}

at::Tensor Totals::grad_scale(double clip, const Limits& limits) const {
    const at::Tensor totals = tensor();
    const at::Tensor loss = totals[kLossSum], count = totals[kCount], squares = totals[kSquares];
    const at::Tensor norm = squares.sqrt() / count;
    const at::Tensor longest = at::full_like(norm, clip);
    const at::Tensor factor = clip > 0 ? (longest / (norm + 1e-6)).clamp_max(1) : at::ones_like(norm);
    const at::Tensor is_finite = at::isfinite(loss).logical_and(at::isfinite(squares));
    const at::Tensor is_low = (loss / count <= limits.loss).logical_and(norm <= limits.grad_norm);
    const at::Tensor is_usable = (count > 0).logical_and(is_finite).logical_and(is_low);
    return (factor / count).masked_fill(is_usable.logical_not(), 0).to(at::kFloat).view({1});
}

}  // namespace ie::runtime

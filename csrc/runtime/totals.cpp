#include "runtime/totals.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>

namespace ie::runtime {
namespace {

double square_sum(const at::Tensor& slice) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("internevo::square_sum", "")
                               .typed<at::Tensor(const at::Tensor&)>();
    return op.call(slice).item<double>();
}

}  // namespace

void Totals::add(Row row, double value) {
    sum(row).add(value);
    sum(row).carry();
}

void Totals::add_squares(const at::Tensor& slice, bool in_order) {
    if (!in_order) return add(kSquares, square_sum(slice));
    const at::Tensor on_host = slice.cpu();
    sum(kSquares).add_squares(on_host.const_data_ptr<float>(), on_host.numel());
}

void Totals::sum_over(const Transfers& world, at::Device device) {
    const at::Tensor words = words_.to(device);
    world.sum_(words);
    words_.copy_(words);
}

at::Tensor Totals::tensor() const {
    at::Tensor totals = at::empty({kNumRows}, at::kDouble);
    for (std::int64_t row = 0; row < kNumRows; ++row) {
        totals.data_ptr<double>()[row] = (*this)[static_cast<Row>(row)];
    }
    return totals;
}

bool Totals::are_usable() const {
    return (*this)[kCount] > 0 && std::isfinite((*this)[kLossSum]) && std::isfinite((*this)[kSquares]);
}

double Totals::grad_scale(double clip) const {
    const double count = (*this)[kCount], norm = std::sqrt((*this)[kSquares]) / count;
    return (clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0) / count;
}

}  // namespace ie::runtime

// The ops on CPU: kernels over ranges, on torch's own threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "kernels/checksum.h"
#include "kernels/square_sum.h"
#include "ops/arguments.h"

namespace ie::ops {
namespace {

using torch::stable::parallel_for;

// Threads get whole cache lines; a thread is worth starting for 16 units, some 10 microseconds of work.
constexpr std::int64_t kUnit = 1024;  // elements
constexpr std::int64_t kGrain = 16;   // units

void adamw_cpu(const Tensor& master, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& grad,
               const std::optional<Tensor>& param_out, const Tensor& grad_scale, std::int64_t decayed_numel,
               double lr, double beta1, double beta2, double eps, double weight_decay, std::int64_t step) {
    const auto buffers =
        adamw_buffers(master, exp_avg, exp_avg_sq, grad, param_out, grad_scale, decayed_numel);
    const auto constants = adamw_step(lr, beta1, beta2, eps, weight_decay, step);
    const float scale = *static_cast<const float*>(grad_scale.data_ptr());
    if (scale == 0) return;
    const std::int64_t num_units = (buffers.numel + kUnit - 1) / kUnit;
    parallel_for(0, num_units, kGrain, [&](std::int64_t begin, std::int64_t end) {
        kernels::adamw_range(buffers, constants, scale, begin * kUnit, std::min(end * kUnit, buffers.numel));
    });
}

Tensor square_sum_cpu(const Tensor& x) {
    const float* data = flat_data(x, "x");
    std::vector<double> partials(kernels::num_blocks(x.numel()));
    parallel_for(0, std::ssize(partials), kGrain, [&](std::int64_t begin, std::int64_t end) {
        kernels::square_sum_blocks(data, x.numel(), partials.data(), begin, end);
    });
    Tensor sum = torch::stable::empty({}, torch::headeronly::ScalarType::Double);
    *static_cast<double*>(sum.data_ptr()) = kernels::sum_partials(partials.data(), std::ssize(partials));
    return sum;
}

Tensor checksums_cpu(const Tensor& x, std::int64_t num_rows) {
    const Words words = words_of(x, num_rows);
    Tensor sums = torch::stable::empty({words.rows}, torch::headeronly::ScalarType::Long);
    auto* const to = static_cast<std::int64_t*>(sums.data_ptr());
    for (std::int64_t row = 0; row < words.rows; ++row) {
        const std::uint32_t* const from = words.data + row * words.count;
        std::atomic<std::uint64_t> sum = 0;
        const std::int64_t num_units = (words.count + kUnit - 1) / kUnit;
        parallel_for(0, num_units, kGrain, [&](std::int64_t begin, std::int64_t end) {
            sum +=
                kernels::checksum(from + begin * kUnit, std::min(end * kUnit, words.count) - begin * kUnit);
        });
        to[row] = static_cast<std::int64_t>(sum.load());
    }
    return sums;
}

void exact_add_cpu(const Tensor& words, const Tensor& values) {
    kernels::ExactSum sum(exact_sum(words, values));
    const double* data = exact_values(values);
    for (std::int64_t i = 0; i < values.numel(); ++i) sum.add(data[i]);
    sum.carry();
}

void exact_add_squares_cpu(const Tensor& words, const Tensor& x) {
    kernels::ExactSum(exact_sum(words, x)).add_squares(flat_data(x, "x"), x.numel());
}

Tensor exact_values_cpu(const Tensor& words) {
    const ExactSums sums = exact_sums(words);
    Tensor values = torch::stable::empty({sums.count}, torch::headeronly::ScalarType::Double);
    for (std::int64_t i = 0; i < sums.count; ++i) {
        static_cast<double*>(values.data_ptr())[i] =
            kernels::ExactSum(sums.words + i * kernels::ExactSum::kWords).value();
    }
    return values;
}

void tree_sum_cpu(const Tensor& out, const Tensor& tensor) {
    const Rows rows = rows_to_add(out, tensor);
    if (rows.are_bf16) {
        kernels::tree_sum(rows.out, static_cast<const kernels::BFloat16*>(rows.data), rows.count, rows.numel);
    } else {
        kernels::tree_sum(rows.out, static_cast<const float*>(rows.data), rows.count, rows.numel);
    }
}

}  // namespace
}  // namespace ie::ops

STABLE_TORCH_LIBRARY_IMPL(internevo, CPU, m) {
    m.impl("adamw_", TORCH_BOX(&ie::ops::adamw_cpu));
    m.impl("square_sum", TORCH_BOX(&ie::ops::square_sum_cpu));
    m.impl("checksums", TORCH_BOX(&ie::ops::checksums_cpu));
    m.impl("exact_add_", TORCH_BOX(&ie::ops::exact_add_cpu));
    m.impl("exact_add_squares_", TORCH_BOX(&ie::ops::exact_add_squares_cpu));
    m.impl("exact_values_", TORCH_BOX(&ie::ops::exact_values_cpu));
    m.impl("tree_sum_", TORCH_BOX(&ie::ops::tree_sum_cpu));
}

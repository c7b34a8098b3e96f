// The ops on CUDA: launchers on torch's current stream. Compiled where nvcc and a CUDA build of torch are
// found.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/error.h"
#include "kernels/checksum.h"
#include "kernels/square_sum.h"
#include "ops/arguments.h"

namespace ie::ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

kernels::Stream current_stream(const Tensor& tensor) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    return static_cast<kernels::Stream>(stream);
}

// The kernels load 16 bytes at a time.
void check_aligned(const void* data, const char* name) {
    IE_CHECK(reinterpret_cast<std::uintptr_t>(data) % 16 == 0, name, " must start at a multiple of 16 bytes");
}

void adamw_cuda(const Tensor& master, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& grad,
                const std::optional<Tensor>& param_out, const Tensor& grad_scale, std::int64_t decayed_numel,
                double lr, double beta1, double beta2, double eps, double weight_decay, std::int64_t step) {
    const auto buffers =
        adamw_buffers(master, exp_avg, exp_avg_sq, grad, param_out, grad_scale, decayed_numel);
    check_aligned(buffers.master, "master");
    check_aligned(buffers.exp_avg, "exp_avg");
    check_aligned(buffers.exp_avg_sq, "exp_avg_sq");
    check_aligned(buffers.grad, "grad");
    check_aligned(buffers.param_out, "param_out");
    const DeviceGuard guard(master.get_device_index());
    kernels::adamw_cuda(buffers, adamw_step(lr, beta1, beta2, eps, weight_decay, step),
                        static_cast<const float*>(grad_scale.data_ptr()), current_stream(master));
}

Tensor square_sum_cuda(const Tensor& x) {
    const float* data = flat_data(x, "x");
    check_aligned(data, "x");
    const DeviceGuard guard(x.get_device_index());
    const Tensor partials = torch::stable::new_empty(x, {kernels::num_blocks(x.numel())}, ScalarType::Double);
    const Tensor sum = torch::stable::new_empty(x, {}, ScalarType::Double);
    kernels::square_sum_cuda(data, x.numel(), static_cast<double*>(partials.data_ptr()),
                             static_cast<double*>(sum.data_ptr()), current_stream(x));
    return sum;
}

void exact_add_cuda(const Tensor& words, const Tensor& values) {
    const DeviceGuard guard(words.get_device_index());
    kernels::exact_add_cuda(exact_sum(words, values), exact_values(values), values.numel(),
                            current_stream(words));
}

void exact_add_squares_cuda(const Tensor& words, const Tensor& x) {
    const float* data = flat_data(x, "x");
    check_aligned(data, "x");
    const DeviceGuard guard(words.get_device_index());
    kernels::exact_add_squares_cuda(exact_sum(words, x), data, x.numel(), current_stream(words));
}

Tensor exact_values_cuda(const Tensor& words) {
    const ExactSums sums = exact_sums(words);
    const DeviceGuard guard(words.get_device_index());
    const Tensor values = torch::stable::new_empty(words, {sums.count}, ScalarType::Double);
    kernels::exact_values_cuda(sums.words, static_cast<double*>(values.data_ptr()), sums.count,
                               current_stream(words));
    return values;
}

void tree_sum_cuda(const Tensor& out, const Tensor& tensor) {
    const Rows rows = rows_to_add(out, tensor);
    check_aligned(rows.out, "out");
    check_aligned(rows.data, "rows");
    const DeviceGuard guard(out.get_device_index());
    const Tensor scratch = torch::stable::new_empty(out, {kernels::scratch_rows(rows.count) * rows.numel});
    auto* const space = static_cast<float*>(scratch.data_ptr());
    const kernels::Stream stream = current_stream(out);
    if (rows.are_bf16) {
        const auto* data = static_cast<const kernels::BFloat16*>(rows.data);
        kernels::tree_sum_cuda(rows.out, data, space, rows.count, rows.numel, stream);
    } else {
        const auto* data = static_cast<const float*>(rows.data);
        kernels::tree_sum_cuda(rows.out, data, space, rows.count, rows.numel, stream);
    }
}

Tensor checksums_cuda(const Tensor& x, std::int64_t num_rows) {
    const Words words = words_of(x, num_rows);
    const DeviceGuard guard(x.get_device_index());
    Tensor sums = torch::stable::new_zeros(x, {words.rows}, ScalarType::Long);
    kernels::checksum_cuda(words.data, words.rows, words.count, static_cast<std::uint64_t*>(sums.data_ptr()),
                           current_stream(x));
    return sums;
}

}  // namespace
}  // namespace ie::ops

STABLE_TORCH_LIBRARY_IMPL(internevo, CUDA, m) {
    m.impl("adamw_", TORCH_BOX(&ie::ops::adamw_cuda));
    m.impl("square_sum", TORCH_BOX(&ie::ops::square_sum_cuda));
    m.impl("checksums", TORCH_BOX(&ie::ops::checksums_cuda));
    m.impl("exact_add_", TORCH_BOX(&ie::ops::exact_add_cuda));
    m.impl("exact_add_squares_", TORCH_BOX(&ie::ops::exact_add_squares_cuda));
    m.impl("exact_values_", TORCH_BOX(&ie::ops::exact_values_cuda));
    m.impl("tree_sum_", TORCH_BOX(&ie::ops::tree_sum_cuda));
}

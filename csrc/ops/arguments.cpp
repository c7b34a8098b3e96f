#include "ops/arguments.h"

#include "core/error.h"

namespace ie::ops {
namespace {

using kernels::ParamOut;
using torch::headeronly::ScalarType;

void check_contiguous(const Tensor& tensor, const char* name) {
    IE_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

void check_like(const Tensor& tensor, const char* name, const Tensor& master) {
    IE_CHECK(tensor.numel() == master.numel(), name, " has ", tensor.numel(), " elements, but master has ",
             master.numel());
    IE_CHECK(tensor.device() == master.device(), name, " and master are on different devices");
}

float* data_like(const Tensor& tensor, const char* name, const Tensor& master) {
    check_like(tensor, name, master);
    return flat_data(tensor, name);
}

ParamOut param_dtype(const Tensor& param_out) {
    const ScalarType dtype = param_out.scalar_type();
    IE_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
             "param_out must be float32 or bfloat16, not ", dtype);
    return dtype == ScalarType::Float ? ParamOut::kFp32 : ParamOut::kBf16;
}

}  // namespace

float* flat_data(const Tensor& tensor, const char* name) {
    IE_CHECK(tensor.scalar_type() == ScalarType::Float, name, " must be float32, not ", tensor.scalar_type());
    check_contiguous(tensor, name);
    return static_cast<float*>(tensor.data_ptr());
}

ExactSums exact_sums(const Tensor& words) {
    IE_CHECK(words.scalar_type() == ScalarType::Long, "words must be int64, not ", words.scalar_type());
    check_contiguous(words, "words");
    IE_CHECK(words.numel() % kernels::ExactSum::kWords == 0, "words has ", words.numel(),
             " elements; a sum has ", kernels::ExactSum::kWords);
    return {static_cast<std::int64_t*>(words.data_ptr()), words.numel() / kernels::ExactSum::kWords};
}

std::int64_t* exact_sum(const Tensor& words, const Tensor& added) {
    const ExactSums sums = exact_sums(words);
    IE_CHECK(sums.count == 1, "words are ", sums.count, " sums, but one is added to");
    IE_CHECK(words.device() == added.device(), "words and what is added are on different devices");
    return sums.words;
}

Words words_of(const Tensor& tensor, std::int64_t rows) {
    check_contiguous(tensor, "x");
    const auto bytes = tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
    const std::int64_t word = sizeof(std::uint32_t);
    IE_CHECK(rows > 0 && bytes % (rows * word) == 0, "x has ", bytes, " bytes, which are not ", rows,
             " rows of whole words");
    return {static_cast<const std::uint32_t*>(tensor.data_ptr()), rows, bytes / (rows * word)};
}

const double* exact_values(const Tensor& values) {
    IE_CHECK(values.scalar_type() == ScalarType::Double, "values must be float64, not ",
             values.scalar_type());
    check_contiguous(values, "values");
    return static_cast<const double*>(values.data_ptr());
}

kernels::AdamWBuffers adamw_buffers(const Tensor& master, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                                    const Tensor& grad, const std::optional<Tensor>& param_out,
                                    const Tensor& grad_scale, std::int64_t decayed_numel) {
    flat_data(grad_scale, "grad_scale");
    IE_CHECK(grad_scale.numel() == 1, "grad_scale has ", grad_scale.numel(), " elements, but one scales all");
    IE_CHECK(grad_scale.device() == master.device(), "grad_scale and master are on different devices");
    IE_CHECK(0 <= decayed_numel && decayed_numel <= master.numel(), "decayed_numel=", decayed_numel,
             " is outside of 0 to ", master.numel());
    kernels::AdamWBuffers buffers{
        .master = flat_data(master, "master"),
        .exp_avg = data_like(exp_avg, "exp_avg", master),
        .exp_avg_sq = data_like(exp_avg_sq, "exp_avg_sq", master),
        .grad = data_like(grad, "grad", master),
        .param_out = nullptr,
        .param_dtype = ParamOut::kNone,
        .numel = master.numel(),
        .decayed_numel = decayed_numel,
    };
    if (param_out) {
        check_like(*param_out, "param_out", master);
        check_contiguous(*param_out, "param_out");
        buffers.param_dtype = param_dtype(*param_out);
        buffers.param_out = param_out->data_ptr();
        IE_CHECK(buffers.param_out != buffers.master || buffers.numel == 0,
                 "param_out is master itself; pass None where the master is the parameter");
    }
    return buffers;
}

kernels::AdamWStep adamw_step(double lr, double beta1, double beta2, double eps, double weight_decay,
                              std::int64_t step) {
    IE_CHECK(lr >= 0, "lr=", lr, " must not be negative");
    IE_CHECK(0 <= beta1 && beta1 < 1, "beta1=", beta1, " must be in [0, 1)");
    IE_CHECK(0 <= beta2 && beta2 < 1, "beta2=", beta2, " must be in [0, 1)");
    IE_CHECK(eps > 0, "eps=", eps, " must be positive");
    IE_CHECK(weight_decay >= 0, "weight_decay=", weight_decay, " must not be negative");
    IE_CHECK(step >= 1, "step=", step, " must be at least 1, the first update");
    return kernels::make_adamw_step({lr, beta1, beta2, eps, weight_decay, step});
}

Rows rows_to_add(const Tensor& out, const Tensor& rows) {
    const ScalarType dtype = rows.scalar_type();
    IE_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
             "rows must be float32 or bfloat16, not ", dtype);
    check_contiguous(rows, "rows");
    IE_CHECK(rows.dim() == 2 && rows.size(0) > 0, "rows must be [num_rows, numel], at least one");
    IE_CHECK(rows.size(1) == out.numel(), "a row has ", rows.size(1), " elements, but out has ", out.numel());
    IE_CHECK(rows.device() == out.device(), "rows and out are on different devices");
    return {flat_data(out, "out"), rows.data_ptr(), dtype == ScalarType::BFloat16, rows.size(0),
            rows.size(1)};
}

}  // namespace ie::ops

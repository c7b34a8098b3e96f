// From the tensors and numbers of an op to the plain views and constants that its kernel takes. Everything is
// checked here, for all devices; the kernels behind see raw pointers. Throws ie::Error.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "kernels/adamw.h"
#include "kernels/exact_sum.h"
#include "kernels/tree_sum.h"

namespace ie::ops {

using torch::stable::Tensor;

// Tensors are contiguous and on one device; as long as master, but grad_scale (1 element); and fp32, but
// param_out (fp32 or bf16).
kernels::AdamWBuffers adamw_buffers(const Tensor& master, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                                    const Tensor& grad, const std::optional<Tensor>& param_out,
                                    const Tensor& grad_scale, std::int64_t decayed_numel);

kernels::AdamWStep adamw_step(double lr, double beta1, double beta2, double eps, double weight_decay,
                              std::int64_t step);

// The data of a contiguous fp32 tensor, which an error calls `name`.
float* flat_data(const Tensor& tensor, const char* name);

// Exact sums that lie side by side: contiguous int64 [..., kWords].
struct ExactSums {
    std::int64_t* words;
    std::int64_t count;
};
ExactSums exact_sums(const Tensor& words);
std::int64_t* exact_sum(const Tensor& words, const Tensor& added);  // one, on the device of what is added

// A contiguous tensor of any dtype as rows of 32-bit words.
struct Words {
    const std::uint32_t* data;
    std::int64_t rows;
    std::int64_t count;  // of a row
};
Words words_of(const Tensor& tensor, std::int64_t rows);

// Contiguous fp64, as many as the tensor has.
const double* exact_values(const Tensor& values);

// Rows to be added: contiguous [num_rows, numel] fp32 or bf16, into `out`, contiguous fp32 of numel elements
// on their device.
struct Rows {
    float* out;
    const void* data;
    bool are_bf16;
    std::int64_t count;
    std::int64_t numel;
};
Rows rows_to_add(const Tensor& out, const Tensor& rows);

}  // namespace ie::ops

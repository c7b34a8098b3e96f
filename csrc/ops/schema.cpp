// torch.ops.internevo.*: what the ops are called and which arguments they write. cpu.cpp and cuda.cpp
// implement them; fake kernels for torch.compile are registered by runtime/extension.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(internevo, m) {
    m.def(
        "adamw_(Tensor(a!) master, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grad, Tensor(d!)? "
        "param_out, "
        "Tensor grad_scale, int decayed_numel, float lr, float beta1, float beta2, float eps, float "
        "weight_decay, "
        "int step) -> ()");
    m.def("square_sum(Tensor x) -> Tensor");
    m.def("exact_add_(Tensor(a!) words, Tensor values) -> ()");
    m.def("exact_add_squares_(Tensor(a!) words, Tensor x) -> ()");
    m.def("checksums(Tensor x, int rows) -> Tensor");
    m.def("exact_values_(Tensor(a!) words) -> Tensor");
    m.def("tree_sum_(Tensor(a!) out, Tensor rows) -> ()");
}

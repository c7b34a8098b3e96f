// AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2) on flat fp32 buffers, in one pass: scale
// the gradient, update both moments, decay and update the master, write the parameter in its compute dtype.
//
//     g = grad * grad_scale
//     m = m + (g - m) * (1 - beta1)
//     v = v + (g * g - v) * (1 - beta2)
//     w = w - (lr * weight_decay * w + lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps))
//
// Moments are interpolated rather than written beta * m + (1 - beta) * g, and decay is subtracted rather than
// w * (1 - lr * weight_decay): 1 - 1e-5 in fp32 is off by up to 0.3 % of the 1e-5. The first decayed_numel
// elements are decayed. An element whose w, m, v and grad are zero stays zero, and so do the gaps of a
// bucket. A grad_scale of 0 skips the step: nothing is written, so that the decision not to update can be
// made on the device.
//
// Memory-bound. Bytes per element: reads 16 (w, m, v, grad), writes 12 (w, m, v) and the parameter: none 28,
// bf16 30, fp32 32. The four fp32 buffers and param_out must not overlap. Host and device give equal bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/host_device.h"
#include "kernels/instruction_set.h"

namespace ie::kernels {

enum class ParamOut { kNone, kFp32, kBf16 };  // kNone: the master is the parameter

struct AdamWSettings {
    double lr;
    double beta1;
    double beta2;
    double eps;  // > 0, else a gap would become 0 / 0
    double weight_decay;
    std::int64_t step;  // 1 at the first update
};

// The numbers of one step, computed in double and rounded once.
struct AdamWStep {
    float step_size;       // lr / (1 - beta1^step)
    float decay;           // lr * weight_decay
    float weight1;         // 1 - beta1
    float weight2;         // 1 - beta2
    float inv_root_bias2;  // 1 / sqrt(1 - beta2^step)
    float eps;
};

// Views of `numel` elements each; nothing is owned.
struct AdamWBuffers {
    float* master;
    float* exp_avg;
    float* exp_avg_sq;
    const float* grad;
    void* param_out;  // float or BFloat16 as param_dtype says; null for kNone
    ParamOut param_dtype;
    std::int64_t numel;
    std::int64_t decayed_numel;
};

// Updates m and v, returns the new w. `decay` is AdamWStep::decay, or 0 for an element that is not decayed.
IE_HOST_DEVICE float adamw_element(float w, float& m, float& v, float g, float decay, const AdamWStep& step) {
    m = m + (g - m) * step.weight1;
    v = v + (g * g - v) * step.weight2;
    const float root = std::sqrt(v) * step.inv_root_bias2 + step.eps;
    return w - (decay * w + step.step_size * m / root);
}

AdamWStep make_adamw_step(const AdamWSettings& settings);

// Host: elements [begin, end), with a grad_scale that is not 0. Any cut of the buffer into ranges gives equal
// bits, on one thread or several.
void adamw_range(const AdamWBuffers& buffers, const AdamWStep& step, float grad_scale, std::int64_t begin,
                 std::int64_t end, InstructionSet set = best_set());

// Device: the whole buffer, queued on `stream`. grad_scale is in device memory; buffers are 16-byte aligned.
void adamw_cuda(const AdamWBuffers& buffers, const AdamWStep& step, const float* grad_scale, Stream stream);

}  // namespace ie::kernels

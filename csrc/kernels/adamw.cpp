#include "kernels/adamw.h"

#include <algorithm>

namespace ie::kernels {
namespace {

struct Nothing {};

IE_INLINE void store(Nothing*, std::int64_t, float) {}
IE_INLINE void store(float* out, std::int64_t i, float w) {
    out[i] = w;
}
IE_INLINE void store(BFloat16* out, std::int64_t i, float w) {
    out[i] = to_bfloat16(w);
}

template <typename Out>
IE_INLINE void update(float* __restrict w, float* __restrict m, float* __restrict v,
                      const float* __restrict grad, Out* __restrict out, AdamWStep step, float decay,
                      float grad_scale, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
        w[i] = adamw_element(w[i], m[i], v[i], grad[i] * grad_scale, decay, step);
        store(out, i, w[i]);
    }
}

// The decay is constant in each of the two halves, so neither loop branches.
template <typename Out>
void update_both(const AdamWBuffers& b, const AdamWStep& step, float grad_scale, std::int64_t begin,
                 std::int64_t end, InstructionSet set) {
    const std::int64_t middle = std::clamp(b.decayed_numel, begin, end);
    Out* out = static_cast<Out*>(b.param_out);
    run<update<Out>>(set, b.master, b.exp_avg, b.exp_avg_sq, b.grad, out, step, step.decay, grad_scale, begin,
                     middle);
    run<update<Out>>(set, b.master, b.exp_avg, b.exp_avg_sq, b.grad, out, step, 0.0f, grad_scale, middle,
                     end);
}

}  // namespace

AdamWStep make_adamw_step(const AdamWSettings& s) {
    const double t = static_cast<double>(s.step);
    return {
        .step_size = static_cast<float>(s.lr / (1.0 - std::pow(s.beta1, t))),
        .decay = static_cast<float>(s.lr * s.weight_decay),
        .weight1 = static_cast<float>(1.0 - s.beta1),
        .weight2 = static_cast<float>(1.0 - s.beta2),
        .inv_root_bias2 = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(s.beta2, t))),
        .eps = static_cast<float>(s.eps),
    };
}

void adamw_range(const AdamWBuffers& buffers, const AdamWStep& step, float grad_scale, std::int64_t begin,
                 std::int64_t end, InstructionSet set) {
    static constexpr decltype(&update_both<Nothing>) rows[] = {update_both<Nothing>, update_both<float>,
                                                               update_both<BFloat16>};
    rows[static_cast<int>(buffers.param_dtype)](buffers, step, grad_scale, begin, end, set);
}

}  // namespace ie::kernels

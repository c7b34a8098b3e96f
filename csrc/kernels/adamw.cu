#include "kernels/adamw.h"
#include "kernels/cuda_check.h"

namespace ie::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // elements a thread: one 16-byte load from each buffer

struct Nothing {};
struct alignas(8) BFloat16x4 {
    BFloat16 x, y, z, w;
};

__device__ void store(Nothing*, std::int64_t, float) {}
__device__ void store(float* out, std::int64_t i, float w) {
    out[i] = w;
}
__device__ void store(BFloat16* out, std::int64_t i, float w) {
    out[i] = to_bfloat16(w);
}

__device__ void store4(Nothing*, std::int64_t, float4) {}
__device__ void store4(float* out, std::int64_t i, float4 w) {
    *reinterpret_cast<float4*>(out + i) = w;
}
__device__ void store4(BFloat16* out, std::int64_t i, float4 w) {
    *reinterpret_cast<BFloat16x4*>(out + i) = {to_bfloat16(w.x), to_bfloat16(w.y), to_bfloat16(w.z),
                                               to_bfloat16(w.w)};
}

__device__ float decay_at(const AdamWBuffers& b, const AdamWStep& step, std::int64_t i) {
    return i < b.decayed_numel ? step.decay : 0.0f;
}

template <typename Out>
__device__ void update1(const AdamWBuffers& b, const AdamWStep& step, float scale, std::int64_t i) {
    const float w = adamw_element(b.master[i], b.exp_avg[i], b.exp_avg_sq[i], b.grad[i] * scale,
                                  decay_at(b, step, i), step);
    b.master[i] = w;
    store(static_cast<Out*>(b.param_out), i, w);
}

template <typename Out>
__device__ void update4(const AdamWBuffers& b, const AdamWStep& step, float scale, std::int64_t i) {
    float4 w = *reinterpret_cast<float4*>(b.master + i);
    float4 m = *reinterpret_cast<float4*>(b.exp_avg + i);
    float4 v = *reinterpret_cast<float4*>(b.exp_avg_sq + i);
    const float4 g = *reinterpret_cast<const float4*>(b.grad + i);
    w.x = adamw_element(w.x, m.x, v.x, g.x * scale, decay_at(b, step, i), step);
    w.y = adamw_element(w.y, m.y, v.y, g.y * scale, decay_at(b, step, i + 1), step);
    w.z = adamw_element(w.z, m.z, v.z, g.z * scale, decay_at(b, step, i + 2), step);
    w.w = adamw_element(w.w, m.w, v.w, g.w * scale, decay_at(b, step, i + 3), step);
    *reinterpret_cast<float4*>(b.master + i) = w;
    *reinterpret_cast<float4*>(b.exp_avg + i) = m;
    *reinterpret_cast<float4*>(b.exp_avg_sq + i) = v;
    store4(static_cast<Out*>(b.param_out), i, w);
}

template <typename Out>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const AdamWBuffers b, const AdamWStep step, const float* grad_scale) {
    const std::int64_t begin = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
    const float scale = *grad_scale;
    if (scale == 0) return;
    if (begin + kWidth <= b.numel) {
        update4<Out>(b, step, scale, begin);
        return;
    }
    for (std::int64_t i = begin; i < b.numel; ++i) update1<Out>(b, step, scale, i);
}

}  // namespace

void adamw_cuda(const AdamWBuffers& buffers, const AdamWStep& step, const float* grad_scale, Stream stream) {
    static constexpr decltype(&adamw_kernel<Nothing>) rows[] = {adamw_kernel<Nothing>, adamw_kernel<float>,
                                                                adamw_kernel<BFloat16>};
    constexpr std::int64_t per_block = kThreads * kWidth;
    const auto blocks = static_cast<unsigned>((buffers.numel + per_block - 1) / per_block);
    if (blocks == 0) return;
    rows[static_cast<int>(buffers.param_dtype)]<<<blocks, kThreads, 0, stream>>>(buffers, step, grad_scale);
    check_launch("adamw");
}

}  // namespace ie::kernels

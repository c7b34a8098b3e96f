// torch.classes.internevo.GradBuckets: accumulates one step's gradients in flat fp32 buckets and sums them
// over ranks.
//
//     for each micro-batch:
//         begin(last)
//         add(param, grad) for each gradient, in any order
//     finish()
//
// The first gradient of a parameter in a step is written to its place in its bucket, later ones are added. In
// the last micro-batch a bucket that has all its parameters is all-reduced (SUM) while the backward pass goes
// on, strictly in bucket order: bucket i is never sent before i - 1, so ranks can't disagree on the order of
// their collectives. Without overlap everything is sent in finish(). finish() writes zeros for parameters
// that had no gradient in the step, sends what is left, waits for all of it, and makes the object ready for
// the next step.
//
// The flat buffers belong to the caller, who has zeroed their gaps; only places of parameters are ever
// written. One caller at a time. Everything is plain ATen, so CUDA tensors work the same way, ordered by
// their streams.
//
// This object decides the moments of communication itself, from what has arrived. Once a schedule exists, the
// scheduler decides them, and the executor takes this place.
#pragma once

#include <torch/custom_class.h>

#include <cstdint>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

namespace ie::runtime {

class GradBuckets : public torch::CustomClassHolder {
  public:
    // flats[i] is bucket i; parameter p lies in flats[bucket_of_param[p]] at offset_of_param[p], in elements.
    // The group has the name that torch.distributed gave it; '' is a world of one, where nothing is sent.
    // Here and below: throws ie::Error.
    GradBuckets(std::vector<at::Tensor> flats, const std::vector<std::int64_t>& bucket_of_param,
                const std::vector<std::int64_t>& offset_of_param,
                const std::vector<std::int64_t>& numel_of_param, const std::string& group_name, bool overlap);

    void begin(bool last);
    void add(std::int64_t param, const at::Tensor& grad);  // fp32 or bf16, any shape of the right length
    void finish();

  private:
    enum class Phase { kIdle, kAccumulating, kLast };

    struct Place {
        std::int64_t bucket;
        at::Tensor flat;              // view of the bucket
        bool in_step = false;         // had a gradient in this step
        bool in_micro_batch = false;  // had one in this micro-batch
    };

    void send_complete();
    void send(std::size_t bucket);
    void wait();
    void reset();

    std::vector<at::Tensor> flats_;
    std::vector<Place> places_;
    std::vector<std::int64_t> num_params_;   // of each bucket
    std::vector<std::int64_t> num_missing_;  // of each bucket, in this micro-batch
    c10::intrusive_ptr<c10d::ProcessGroup> group_;
    bool overlap_;

    Phase phase_ = Phase::kIdle;
    std::size_t next_to_send_ = 0;
    std::vector<c10::intrusive_ptr<c10d::Work>> in_flight_;
};

}  // namespace ie::runtime

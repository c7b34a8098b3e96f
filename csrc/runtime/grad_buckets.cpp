#include "runtime/grad_buckets.h"

#include <torch/library.h>

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "core/error.h"

namespace ie::runtime {
namespace {

void check_flat(const at::Tensor& flat, std::size_t bucket) {
    IE_CHECK(flat.dim() == 1 && flat.is_contiguous() && flat.scalar_type() == at::kFloat, "bucket ", bucket,
             " must be a contiguous float32 vector, not ", flat.scalar_type(), " of shape ", flat.sizes());
}

at::Tensor place_in(const at::Tensor& flat, std::size_t param, std::int64_t offset, std::int64_t numel) {
    IE_CHECK(0 <= offset && 0 < numel && offset + numel <= flat.numel(), "parameter ", param,
             " with offset=", offset, " and numel=", numel, " does not fit its bucket of ", flat.numel(),
             " elements");
    return flat.narrow(0, offset, numel);
}

}  // namespace

GradBuckets::GradBuckets(std::vector<at::Tensor> flats, const std::vector<std::int64_t>& bucket_of_param,
                         const std::vector<std::int64_t>& offset_of_param,
                         const std::vector<std::int64_t>& numel_of_param, const std::string& group_name,
                         bool overlap)
    : flats_(std::move(flats)), num_params_(flats_.size()), overlap_(overlap) {
    const std::size_t num_params = bucket_of_param.size();
    IE_CHECK(offset_of_param.size() == num_params && numel_of_param.size() == num_params, "got ", num_params,
             " buckets, ", offset_of_param.size(), " offsets and ", numel_of_param.size(),
             " numels of parameters");
    for (std::size_t bucket = 0; bucket < flats_.size(); ++bucket) check_flat(flats_[bucket], bucket);
    for (std::size_t param = 0; param < num_params; ++param) {
        const std::int64_t bucket = bucket_of_param[param];
        IE_CHECK(0 <= bucket && bucket < std::ssize(flats_), "parameter ", param, " is in bucket ", bucket,
                 " of ", flats_.size());
        places_.push_back(
            {bucket, place_in(flats_[bucket], param, offset_of_param[param], numel_of_param[param])});
        ++num_params_[bucket];
    }
    if (!group_name.empty()) group_ = c10d::resolve_process_group(group_name);
}

void GradBuckets::begin(bool last) {
    IE_CHECK(phase_ != Phase::kLast, "begin() after the last micro-batch of a step; call finish() first");
    phase_ = last ? Phase::kLast : Phase::kAccumulating;
    num_missing_ = num_params_;
    for (Place& place : places_) place.in_micro_batch = false;
}

void GradBuckets::add(std::int64_t param, const at::Tensor& grad) {
    IE_CHECK(phase_ != Phase::kIdle, "add() before begin()");
    IE_CHECK(0 <= param && param < std::ssize(places_), "unknown parameter ", param, "; there are ",
             places_.size());
    Place& place = places_[param];
    IE_CHECK(!place.in_micro_batch, "parameter ", param, " was added twice in one micro-batch");
    IE_CHECK(grad.numel() == place.flat.numel(), "the gradient of parameter ", param, " has ", grad.numel(),
             " elements, the parameter has ", place.flat.numel());
    IE_CHECK(grad.scalar_type() == at::kFloat || grad.scalar_type() == at::kBFloat16,
             "the gradient of parameter ", param, " must be float32 or bfloat16, not ", grad.scalar_type());
    const at::NoGradGuard no_grad;
    const at::Tensor target = place.flat.view(grad.sizes());
    place.in_step ? target.add_(grad) : target.copy_(grad);
    place.in_step = place.in_micro_batch = true;
    --num_missing_[place.bucket];
    if (overlap_ && phase_ == Phase::kLast) send_complete();
}

void GradBuckets::finish() {
    IE_CHECK(phase_ == Phase::kLast, "finish() before the last micro-batch; call begin(last=true) first");
    const at::NoGradGuard no_grad;
    for (Place& place : places_) {
        if (!place.in_step) place.flat.zero_();
    }
    while (next_to_send_ < flats_.size()) send(next_to_send_++);
    wait();
    reset();
}

void GradBuckets::send_complete() {
    while (next_to_send_ < flats_.size() && num_missing_[next_to_send_] == 0) send(next_to_send_++);
}

void GradBuckets::send(std::size_t bucket) {
    if (!group_) return;
    std::vector<at::Tensor> tensors{flats_[bucket]};
    in_flight_.push_back(group_->allreduce(tensors));
}

void GradBuckets::wait() {
    for (const auto& work : in_flight_) work->wait();
    in_flight_.clear();
}

void GradBuckets::reset() {
    for (Place& place : places_) place.in_step = false;
    next_to_send_ = 0;
    phase_ = Phase::kIdle;
}

}  // namespace ie::runtime

TORCH_LIBRARY_FRAGMENT(internevo, m) {
    using ie::runtime::GradBuckets;
    m.class_<GradBuckets>("GradBuckets")
        .def(torch::init<std::vector<at::Tensor>, std::vector<std::int64_t>, std::vector<std::int64_t>,
                         std::vector<std::int64_t>, std::string, bool>())
        .def("begin", &GradBuckets::begin)
        .def("add", &GradBuckets::add)
        .def("finish", &GradBuckets::finish);
}

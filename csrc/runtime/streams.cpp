#include "runtime/streams.h"

#include <algorithm>

#include "core/error.h"

namespace ie::runtime {
namespace {

// The caller gets its stream back, also from a step that fails.
class CallersStream {
  public:
    explicit CallersStream(StreamDevice& device) : device_(device) { device_.begin(); }
    ~CallersStream() { device_.enter(0); }
    CallersStream(const CallersStream&) = delete;
    CallersStream& operator=(const CallersStream&) = delete;

  private:
    StreamDevice& device_;
};

}  // namespace

Streams::Streams(std::vector<std::size_t> lanes, const std::vector<std::vector<std::size_t>>& after,
                 std::unique_ptr<StreamDevice> device)
    : lanes_(std::move(lanes)),
      waits_(lanes_.size()),
      is_awaited_(lanes_.size()),
      num_lanes_(lanes_.empty() ? 1 : *std::ranges::max_element(lanes_) + 1),
      spans_(lanes_.size()),
      device_(std::move(device)) {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
        for (const std::size_t earlier : after[i]) {
            IE_CHECK(earlier < i, "instruction ", i, " waits for ", earlier, ", which is queued later");
            if (lanes_[earlier] == lanes_[i]) continue;
            waits_[i].push_back(earlier);
            is_awaited_[earlier] = true;
        }
    }
}

void Streams::run(const Execute& execute, std::size_t end) {
    IE_CHECK(!failed_,
             "an earlier step failed, and its ranks are out of step; start again from a new executor");
    failed_ = true;  // until the end is reached
    const CallersStream callers_stream(*device_);
    fork();
    for (std::size_t i = next(); i < end; ++i) queue(i, execute);
    join();
    failed_ = false;
    advance_to(end);
}

void Streams::fork() {
    const std::size_t begin = lanes_.size();
    device_->record(begin);
    for (std::size_t lane = 1; lane < num_lanes_; ++lane) {
        device_->enter(lane);
        device_->wait(begin);
    }
}

void Streams::queue(std::size_t instruction, const Execute& execute) {
    device_->enter(lanes_[instruction]);
    for (const std::size_t earlier : waits_[instruction]) device_->wait(earlier);
    spans_[instruction].start = std::chrono::steady_clock::now();
    execute(instruction);
    spans_[instruction].end = std::chrono::steady_clock::now();
    if (is_awaited_[instruction]) device_->record(instruction);
}

void Streams::join() {
    for (std::size_t lane = 1; lane < num_lanes_; ++lane) {
        device_->enter(lane);
        device_->record(lanes_.size() + lane);
        device_->enter(0);
        device_->wait(lanes_.size() + lane);
    }
}

}  // namespace ie::runtime

#include "runtime/lanes.h"

#include "core/error.h"

namespace ie::runtime {
namespace {

constexpr int kStopped = 1 << 30;  // more than any queue is long

template <typename T>
void publish(std::atomic<T>& value, T by) {
    value.fetch_add(by);
    value.notify_all();
}

}  // namespace

Lanes::Lanes(const std::vector<std::vector<std::size_t>>& queues, std::vector<std::vector<std::size_t>> after)
    : places_(after.size()), after_(std::move(after)), spans_(after_.size()) {
    for (std::size_t l = 0; l < queues.size(); ++l) {
        lanes_.push_back(std::make_unique<Lane>());
        lanes_[l]->queue = queues[l];
        for (std::size_t i = 0; i < queues[l].size(); ++i)
            places_.at(queues[l][i]) = {l, static_cast<int>(i)};
    }
    for (std::size_t l = 1; l < lanes_.size(); ++l) {
        lanes_[l]->thread = std::thread([this, l] { serve(*lanes_[l]); });
    }
}

Lanes::~Lanes() {
    closing_ = true;
    publish(num_runs_, 1);
    for (const auto& lane : lanes_) {
        if (lane->thread.joinable()) lane->thread.join();
    }
}

void Lanes::run(const Execute& execute, std::size_t end) {
    IE_CHECK(!stopped_,
             "an earlier step failed, and its ranks are out of step; start again from a new executor");
    execute_ = &execute;
    end_ = end;
    if (next() == 0) {
        for (const auto& lane : lanes_) lane->num_ended = 0;
    }
    num_active_ = static_cast<int>(lanes_.size());
    publish(num_runs_, 1);
    drain(*lanes_[0]);
    for (int active = num_active_; active > 0; active = num_active_) num_active_.wait(active);
    if (stopped_) std::rethrow_exception(error_);
    advance_to(end);
}

void Lanes::wait_until(const std::function<bool()>& condition) const {
    while (true) {
        const int wakes = *wakes_;  // read first: a wake after the look at the condition is not missed
        if (stopped_) throw Stopped();
        if (condition()) return;
        wakes_->wait(wakes);
    }
}

std::function<void()> Lanes::waker() const {
    return [wakes = wakes_] { publish(*wakes, 1); };
}

// The life of a lane's thread.
void Lanes::serve(Lane& lane) {
    for (int run = 0;; ++run) {
        num_runs_.wait(run);
        if (closing_) return;
        drain(lane);
    }
}

void Lanes::drain(Lane& lane) {
    try {
        for (std::size_t i = lane.num_ended; i < lane.queue.size() && lane.queue[i] < end_; ++i) {
            const std::size_t instruction = lane.queue[i];
            start_when_ready(instruction);
            spans_[instruction].start = std::chrono::steady_clock::now();
            (*execute_)(instruction);
            spans_[instruction].end = std::chrono::steady_clock::now();
            publish(lane.num_ended, 1);
        }
    } catch (const Stopped&) {  // by another lane, which has said why
    } catch (...) {
        stop(std::current_exception());
    }
    publish(num_active_, -1);
}

void Lanes::start_when_ready(std::size_t instruction) const {
    for (const std::size_t earlier : after_[instruction]) {
        const Place place = places_[earlier];
        const std::atomic<int>& num_ended = lanes_[place.lane]->num_ended;
        for (int ended = num_ended; ended <= place.position; ended = num_ended) num_ended.wait(ended);
    }
    if (stopped_) throw Stopped();
}

void Lanes::stop(std::exception_ptr error) {
    if (stopped_.exchange(true)) return;
    error_ = std::move(error);
    for (const auto& lane : lanes_) publish(lane->num_ended, kStopped);
    publish(*wakes_, 1);
}

}  // namespace ie::runtime

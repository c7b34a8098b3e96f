// Lanes: queues of instructions that run beside each other, on one thread each. No torch, no Python: what an
// instruction does is the caller's.
//
//     Lanes lanes(queues, after);
//     lanes.run(execute);        once a step; queue 0 runs on the calling thread
//     lanes.run(execute, end);   or a step in parts: the instructions below `end` that have not run yet
//
// A lane executes its instructions one after the other, each once all of `after` have ended. An exception
// ends the step in every lane: none starts another instruction, waits end, and run() rethrows the first
// exception when all lanes have come to rest. After that the lanes are stopped for good, because ranks that
// part in the middle of a step can't meet again.
//
// An instruction that waits for something from outside (a collective) does it in wait_until(), so that an
// error elsewhere frees it. Whoever makes its condition true calls the function that waker() returned; it may
// be called at any time, also when these lanes are gone.
//
// For a device that has streams of its own see streams.h.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <thread>

#include "runtime/lane_runner.h"

namespace ie::runtime {

class Lanes : public LaneRunner {
  public:
    // queues[l] lists the instructions of lane l; every instruction from 0 on is in one queue, and after[i]
    // are the instructions that must end before i starts. Waits that can never end are the caller's mistake.
    // A step in parts needs rising numbers: in every queue, and from after[i] to i.
    Lanes(const std::vector<std::vector<std::size_t>>& queues, std::vector<std::vector<std::size_t>> after);
    ~Lanes() override;
    Lanes(const Lanes&) = delete;
    Lanes& operator=(const Lanes&) = delete;

    using LaneRunner::run;
    void run(const Execute& execute, std::size_t end) override;

    // Only inside execute().
    void wait_until(const std::function<bool()>& condition) const;
    std::function<void()> waker() const;

    const std::vector<Span>& spans() const override { return spans_; }

  private:
    struct Lane {
        std::vector<std::size_t> queue;
        std::atomic<int> num_ended = 0;  // in this step; huge once the lanes are stopped
        std::thread thread;
    };
    struct Place {
        std::size_t lane;
        int position;
    };
    class Stopped {};

    void serve(Lane& lane);
    void drain(Lane& lane);
    void start_when_ready(std::size_t instruction) const;
    void stop(std::exception_ptr error);

    std::vector<std::unique_ptr<Lane>> lanes_;
    std::vector<Place> places_;
    std::vector<std::vector<std::size_t>> after_;
    std::vector<Span> spans_;

    const Execute* execute_ = nullptr;
    std::size_t end_ = 0;              // of this run
    std::atomic<int> num_runs_ = 0;    // begun; lanes wait for the next
    std::atomic<int> num_active_ = 0;  // lanes that have not come to rest in this run
    std::atomic<bool> closing_ = false;
    std::atomic<bool> stopped_ = false;
    std::exception_ptr error_;
    std::shared_ptr<std::atomic<int>> wakes_ = std::make_shared<std::atomic<int>>(0);
};

}  // namespace ie::runtime

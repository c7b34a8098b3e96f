// Lanes as streams of a device: the host only queues, in the order of the Program's numbers, and goes on.
//
// One thread queues everything, so collectives of several process groups start in one order on all ranks,
// which NCCL asks for. A lane's instructions follow each other on its stream; where one waits for another
// lane's, its stream waits for the event that marks the other's end. The host waits for nothing.
//
// Lane 0 is the stream that is current when run() is called. The other streams wait for what was queued there
// before the step, and it waits for all of them at the end, so the caller sees a step as work on its own
// stream. So it does with each part of a step.
#pragma once

#include <memory>

#include "runtime/lane_runner.h"

namespace ie::runtime {

// What a device does for lanes. An event is a number; recorded again, it stands for the later moment.
class StreamDevice {
  public:
    virtual ~StreamDevice() = default;

    virtual void begin() = 0;                    // lane 0 is the stream that is current now
    virtual void enter(std::size_t lane) = 0;    // what comes next is queued on this lane's stream
    virtual void record(std::size_t event) = 0;  // marks the end of what the entered stream has queued so far
    virtual void wait(std::size_t event) = 0;    // the entered stream goes on after what was recorded
};

class Streams : public LaneRunner {
  public:
    // lanes[i] is the lane of instruction i, after[i] what it waits for; ie::Error where that has a later
    // number. Events are the instructions' numbers, then one for each lane.
    Streams(std::vector<std::size_t> lanes, const std::vector<std::vector<std::size_t>>& after,
            std::unique_ptr<StreamDevice> device);

    using LaneRunner::run;
    void run(const Execute& execute, std::size_t end) override;
    const std::vector<Span>& spans() const override { return spans_; }

  private:
    void fork();
    void queue(std::size_t instruction, const Execute& execute);
    void join();

    std::vector<std::size_t> lanes_;
    std::vector<std::vector<std::size_t>> waits_;  // for instructions of other lanes
    std::vector<bool> is_awaited_;                 // by another lane
    std::size_t num_lanes_;
    std::vector<Span> spans_;
    std::unique_ptr<StreamDevice> device_;
    bool failed_ = false;
};

}  // namespace ie::runtime

// What runs the lanes of a Program: threads (lanes.h) or the streams of a device (streams.h). No torch.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <vector>

namespace ie::runtime {

class LaneRunner {
  public:
    using Execute = std::function<void(std::size_t instruction)>;

    // On the host's clock. Where lanes are streams an instruction ends for the host when its work is queued.
    struct Span {
        std::chrono::steady_clock::time_point start, end;
    };

    virtual ~LaneRunner() = default;

    // Executes every instruction once: in the order of its lane, and after what it waits for. Lane 0 belongs
    // to the caller: its thread, and its stream. Rethrows what an instruction throws; then the runner is of
    // no use any more, because ranks that part in the middle of a step can't meet again.
    void run(const Execute& execute) { run(execute, spans().size()); }

    // A step in parts: only the instructions from next() up to `end`, not included.
    virtual void run(const Execute& execute, std::size_t end) = 0;

    // The first instruction that has not run in this step; 0 between steps.
    std::size_t next() const { return next_; }

    // When each instruction ran last. Not while one runs.
    virtual const std::vector<Span>& spans() const = 0;

  protected:
    void advance_to(std::size_t end) { next_ = end < spans().size() ? end : 0; }

  private:
    std::size_t next_ = 0;
};

}  // namespace ie::runtime

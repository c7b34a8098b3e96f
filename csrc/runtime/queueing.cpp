#include "runtime/queueing.h"

#include <algorithm>

#include "core/error.h"
#include "runtime/c10_streams.h"
#include "runtime/lanes.h"

namespace ie::runtime {
namespace {

std::size_t lane_of(const core::Instruction& instruction) {
    return static_cast<std::size_t>(instruction.lane);
}

std::vector<std::vector<std::size_t>> waits_of(const core::Program& program) {
    std::vector<std::vector<std::size_t>> after;
    for (const core::Instruction& i : program.instructions)
        after.emplace_back(i.after.begin(), i.after.end());
    return after;
}

// For a collective, or for an error in another lane.
void wait_for(c10d::Work& work, const Lanes& lanes) {
    if (!work.isCompleted()) {
        const auto future = work.getFuture();
        future->addCallback([wake = lanes.waker()](c10::ivalue::Future&) { wake(); });
        lanes.wait_until([&] { return future->completed(); });
    }
    work.wait();
}

Queueing on_threads(const core::Program& program, at::Device) {
    std::vector<std::vector<std::size_t>> queues(core::kNumLanes);
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        queues[lane_of(program.instructions[i])].push_back(i);
    }
    auto lanes = std::make_unique<Lanes>(queues, waits_of(program));
    auto wait = [&lanes = *lanes](c10d::Work& work) { wait_for(work, lanes); };
    return {std::move(lanes), releases_on_threads(program), std::move(wait)};
}

// There a Work's wait() makes the current stream wait, which is the lane's.
Queueing on_streams(const core::Program& program, at::Device device) {
    std::vector<std::size_t> lanes;
    for (const core::Instruction& instruction : program.instructions) lanes.push_back(lane_of(instruction));
    Releases releases = releases_on_streams(program);
    auto waits = waits_of(program);
    for (std::size_t i = 0; i < waits.size(); ++i) {
        waits[i].insert(waits[i].end(), releases.waits[i].begin(), releases.waits[i].end());
    }
    auto streams = std::make_unique<C10Streams>(device, core::kNumLanes, lanes.size() + core::kNumLanes);
    return {std::make_unique<Streams>(std::move(lanes), waits, std::move(streams)), std::move(releases),
            [](c10d::Work& work) { work.wait(); }};
}

struct Row {
    std::string_view name;
    Queueing (*make)(const core::Program& program, at::Device device);
};
constexpr Row kRows[] = {{"threads", on_threads}, {"streams", on_streams}};

}  // namespace

Queueing make_queueing(const std::string& name, const core::Program& program, at::Device device) {
    const Row* row = std::ranges::find(kRows, name, &Row::name);
    IE_CHECK(row != std::end(kRows), "lanes can't be '", name, "'; they are 'threads' or 'streams'");
    return row->make(program, device);
}

}  // namespace ie::runtime

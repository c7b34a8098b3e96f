#include "core/simulation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"

namespace ie::core {
namespace {

enum class Resource { kNone, kCompute, kNearLink, kFarLink };

constexpr std::size_t index_of(Resource resource) {
    return static_cast<std::size_t>(resource);
}

Resource resource_of(const Instruction& i, const Program& program, const Layout& layout) {
    if (i.kind == Kind::kCompute) return Resource::kCompute;
    if (i.level.empty()) return Resource::kNone;
    const auto is_far = [](const Level& level) { return level.link == Link::kFar; };
    const bool leaves_host = i.level == "all" ? std::ranges::any_of(program.levels, is_far)
                                              : is_far(program.levels[layout.level_of(i)]);
    return leaves_host ? Resource::kFarLink : Resource::kNearLink;
}

// What runs now: at most one instruction a lane, each with the time that it would still take alone.
class Events {
  public:
    Events(const Program& program, std::vector<double> alone, std::vector<Resource> resources,
           double contention)
        : program_(program),
          alone_(std::move(alone)),
          resources_(std::move(resources)),
          contention_(contention),
          spans_(program.instructions.size(), {kNotYet, kNotYet}) {
        for (std::size_t i = 0; i < spans_.size(); ++i) {
            lanes_[static_cast<std::size_t>(program.instructions[i].lane)].queue.push_back(i);
        }
    }

    std::vector<Span> run() {
        std::size_t num_ended = 0;
        while (num_ended < spans_.size()) {
            start_idle_lanes();
            num_ended += end_first();
        }
        return std::move(spans_);
    }

  private:
    static constexpr std::int64_t kNotYet = -1;

    struct RunningLane {
        std::vector<std::size_t> queue{};  // its instructions, in the order of the Program
        std::size_t next = 0;              // place of the one that runs or is to start
        double remaining = 0;              // ns alone
        bool is_busy = false;
    };

    bool may_start(std::size_t i) const {
        return std::ranges::all_of(program_.instructions[i].after,
                                   [&](std::int64_t before) { return spans_[before].end != kNotYet; });
    }

    void start_idle_lanes() {
        for (RunningLane& lane : lanes_) {
            if (lane.is_busy || lane.next == lane.queue.size() || !may_start(lane.queue[lane.next])) continue;
            const std::size_t i = lane.queue[lane.next];
            spans_[i].start = std::llround(now_);
            lane.remaining = alone_[i];
            lane.is_busy = true;
            ++num_running_[index_of(resources_[i])];
        }
    }

    // How many times as long as alone an instruction takes while the present ones run.
    double slowdown(Resource resource) const {
        const int near = num_running_[index_of(Resource::kNearLink)];
        const int far = num_running_[index_of(Resource::kFarLink)];
        switch (resource) {
            case Resource::kNearLink:
                return near;
            case Resource::kFarLink:
                return far;
            case Resource::kCompute:
                return near + far > 0 ? 1 + contention_ : 1;
            default:
                return 1;
        }
    }

    // Moves on to the first end, and returns how many instructions end there.
    std::size_t end_first() {
        double first = -1;
        for (const RunningLane& lane : lanes_) {
            if (!lane.is_busy) continue;
            const double needed = lane.remaining * slowdown(resources_[lane.queue[lane.next]]);
            if (first < 0 || needed < first) first = needed;
        }
        IE_CHECK(first >= 0, "nothing can start at ", std::llround(now_),
                 " ns: instructions wait for each other");
        std::array<double, kNumLanes> slowdowns{};
        for (std::size_t k = 0; k < kNumLanes; ++k) {
            if (lanes_[k].is_busy) slowdowns[k] = slowdown(resources_[lanes_[k].queue[lanes_[k].next]]);
        }
        now_ += first;
        std::size_t num_ended = 0;
        for (std::size_t k = 0; k < kNumLanes; ++k) num_ended += advance(lanes_[k], first / slowdowns[k]);
        return num_ended;
    }

    // Whether the lane's instruction ends with these ns of work. A rest below a picosecond is rounding.
    bool advance(RunningLane& lane, double work) {
        if (!lane.is_busy) return false;
        lane.remaining -= work;
        if (lane.remaining > 1e-3) return false;
        const std::size_t i = lane.queue[lane.next++];
        spans_[i].end = std::llround(now_);
        lane.is_busy = false;
        --num_running_[index_of(resources_[i])];
        return true;
    }

    const Program& program_;
    std::vector<double> alone_;
    std::vector<Resource> resources_;
    double contention_;
    std::vector<Span> spans_;
    std::array<RunningLane, kNumLanes> lanes_{};
    std::array<int, 4> num_running_{};
    double now_ = 0;
};

}  // namespace

Simulation::Simulation(Program program)
    : program_(std::make_unique<const Program>(std::move(program))), layout_(*program_) {}

std::vector<Span> Simulation::run(const Costs& costs, double contention) const {
    check_costs(costs, *program_);
    std::vector<double> alone;
    std::vector<Resource> resources;
    for (const Instruction& instruction : program_->instructions) {
        alone.push_back(static_cast<double>(cost_of(instruction, *program_, layout_, costs)));
        resources.push_back(resource_of(instruction, *program_, layout_));
    }
    return Events(*program_, std::move(alone), std::move(resources), contention).run();
}

}  // namespace ie::core

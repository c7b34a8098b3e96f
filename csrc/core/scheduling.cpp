#include "core/scheduling.h"

#include <algorithm>
#include <queue>
#include <unordered_map>

#include "core/error.h"
#include "core/happens_before.h"
#include "core/serial_step.h"

namespace ie::core {
namespace {

using Indices = std::vector<std::int64_t>;
constexpr std::int64_t kNone = -1;

// Bytes alive at once, bounded: says which `free` must have ended before more may live.
class Window {
  public:
    explicit Window(std::int64_t limit) : limit_(limit) {}

    std::int64_t admit(std::int64_t bytes) {
        std::int64_t wait = kNone;
        alive_ += bytes;
        while (limit_ > 0 && alive_ > limit_ && !freed_.empty()) {
            wait = freed_.front().number;
            alive_ -= freed_.front().bytes;
            freed_.pop();
        }
        return wait;
    }

    void release(std::int64_t number, std::int64_t bytes) { freed_.push({number, bytes}); }
    bool holds() const { return limit_ == 0 || alive_ <= limit_; }
    std::int64_t alive() const { return alive_; }

  private:
    struct Freed {
        std::int64_t number;
        std::int64_t bytes;
    };
    std::int64_t limit_;
    std::int64_t alive_ = 0;
    std::queue<Freed> freed_;
};

// Fills `after` of the serial step: for each instruction everything it must wait for.
class Dependencies {
  public:
    Dependencies(const Program& program, const Layout& layout)
        : program_(program), layout_(layout), gathered_(program.window_bytes), packed_(program.window_bytes) {
        for (const Buffer& buffer : layout.buffers()) bytes_[buffer.name] = buffer.bytes;
    }

    void fill(std::vector<Instruction>& instructions) {
        for (std::int64_t i = 0; i < std::ssize(instructions); ++i) {
            wait_for_data(instructions[i], i);
            keep_order(instructions[i], i);
            keep_windows(instructions, i);
        }
    }

  private:
    struct Access {
        std::int64_t writer = kNone;
        Indices readers{};
    };

    void wait_for_data(Instruction& instruction, std::int64_t i) {
        for (const std::string& name : instruction.reads) {
            Access& access = accesses_[name];
            wait(instruction, access.writer);
            access.readers.push_back(i);
        }
        for (const std::string& name : instruction.writes) {
            Access& access = accesses_[name];
            wait(instruction, access.writer);
            for (const std::int64_t reader : access.readers) {
                if (reader != i) wait(instruction, reader);
            }
            access = {.writer = i};
        }
    }

    void keep_order(Instruction& instruction, std::int64_t i) {
        if (instruction.kind != Kind::kCompute && instruction.kind != Kind::kGather) return;
        std::int64_t& last = instruction.kind == Kind::kCompute ? last_compute_ : last_gather_;
        wait(instruction, last);
        last = i;
    }

    void keep_windows(std::vector<Instruction>& instructions, std::int64_t i) {
        Instruction& instruction = instructions[i];
        const std::string& target = instruction.writes.empty() ? instruction.what : instruction.writes[0];
        if (instruction.kind == Kind::kGather && instruction.reads[0] != target) {
            wait(instruction, gathered_.admit(bytes_.at(target)));
            IE_CHECK(gathered_.holds(), "window_bytes=", program_.window_bytes, " does not hold the ",
                     gathered_.alive(), " bytes of parameters that one call reads");
        }
        if (instruction.kind == Kind::kPack && !layout_.packs_into_sum()) {
            const std::int64_t free = packed_.admit(bytes_.at(target));
            wait(free < last_compute_ ? instructions[last_compute_] : instruction, free);
        }
        if (instruction.kind == Kind::kFree) release(instruction, i);
    }

    void release(const Instruction& instruction, std::int64_t i) {
        for (const std::string& name : instruction.writes) {
            if (name.starts_with("param[")) gathered_.release(i, bytes_.at(name));
            if (name.starts_with("grad[")) packed_.release(i, bytes_.at(name));
        }
    }

    static void wait(Instruction& instruction, std::int64_t before) {
        if (before != kNone) instruction.after.push_back(before);
    }

    const Program& program_;
    const Layout& layout_;
    Window gathered_;
    Window packed_;
    std::unordered_map<std::string, std::int64_t> bytes_;
    std::unordered_map<std::string, Access> accesses_;
    std::int64_t last_compute_ = kNone;
    std::int64_t last_gather_ = kNone;
};

// Simulates the lanes and hands back the numbers of the serial step in the order in which they start.
class ListScheduler {
  public:
    explicit ListScheduler(const std::vector<Instruction>& instructions)
        : instructions_(instructions), followers_(instructions.size()) {
        for (std::int64_t i = 0; i < std::ssize(instructions); ++i) {
            num_waits_.push_back(std::ssize(instructions[i].after));
            for (const std::int64_t before : instructions[i].after) followers_[before].push_back(i);
            if (num_waits_[i] == 0) make_ready(i);
        }
    }

    Indices order() {
        start_idle_lanes(0);
        while (!running_.empty()) {
            const std::int64_t now = running_.top().end;
            while (!running_.empty() && running_.top().end == now) end_first();
            start_idle_lanes(now);
        }
        return std::move(order_);
    }

  private:
    struct Running {
        std::int64_t end;
        std::int64_t number;
        bool operator>(const Running& other) const {
            return std::tie(end, number) > std::tie(other.end, other.number);
        }
    };
    template <typename Item>
    using MinHeap = std::priority_queue<Item, std::vector<Item>, std::greater<Item>>;

    std::size_t lane(std::int64_t i) const { return static_cast<std::size_t>(instructions_[i].lane); }
    void make_ready(std::int64_t i) { ready_[lane(i)].push(i); }

    void start_idle_lanes(std::int64_t now) {
        for (std::size_t lane = 0; lane < kNumLanes; ++lane) {
            if (is_busy_[lane] || ready_[lane].empty()) continue;
            const std::int64_t i = ready_[lane].top();
            ready_[lane].pop();
            is_busy_[lane] = true;
            order_.push_back(i);
            running_.push({now + instructions_[i].cost, i});
        }
    }

    void end_first() {
        const std::int64_t i = running_.top().number;
        running_.pop();
        is_busy_[lane(i)] = false;
        for (const std::int64_t follower : followers_[i]) {
            if (--num_waits_[follower] == 0) make_ready(follower);
        }
    }

    const std::vector<Instruction>& instructions_;
    std::vector<Indices> followers_;
    Indices num_waits_;
    std::array<MinHeap<std::int64_t>, kNumLanes> ready_;
    std::array<bool, kNumLanes> is_busy_{};
    MinHeap<Running> running_;
    Indices order_;
};

// Numbers the instructions in the given order, and keeps of `after` what does not follow from the rest.
class Numbering {
  public:
    Numbering(std::vector<Instruction> instructions, Indices order)
        : instructions_(std::move(instructions)), order_(std::move(order)), number_(order_.size()) {}

    std::vector<Instruction> list() {
        std::vector<Instruction> numbered;
        for (const std::int64_t i : order_) {
            number_[i] = std::ssize(numbered);
            Instruction& instruction = instructions_[i];
            instruction.after = needed(instruction);
            numbered.push_back(std::move(instruction));
        }
        return numbered;
    }

  private:
    Indices needed(const Instruction& instruction) {
        Indices before;
        for (const std::int64_t i : instruction.after) before.push_back(number_[i]);
        std::ranges::sort(before, std::greater{});  // a later one never follows from an earlier one
        const auto lane = static_cast<std::size_t>(instruction.lane);
        Clock clock = lanes_[lane];
        Indices kept;
        for (const std::int64_t number : before) {
            if (clock.covers(places_[number])) continue;
            clock.join(ended_[number]);
            kept.push_back(number);
        }
        std::ranges::reverse(kept);
        places_.push_back({instruction.lane, num_in_lane_[lane]++});
        clock.add(places_.back());
        ended_.push_back(clock);
        lanes_[lane] = clock;
        return kept;
    }

    std::vector<Instruction> instructions_;
    Indices order_;
    Indices number_;  // new number of each
    std::vector<Place> places_;
    std::vector<Clock> ended_;  // what has ended when an instruction has
    std::array<Clock, kNumLanes> lanes_{};
    std::array<std::int64_t, kNumLanes> num_in_lane_{};
};

Indices serial_order(std::vector<Instruction>& instructions) {
    Indices order;
    for (std::int64_t i = 0; i < std::ssize(instructions); ++i) {
        if (i > 0) instructions[i].after.push_back(i - 1);
        order.push_back(i);
    }
    return order;
}

}  // namespace

Program schedule(const Program& header, const Costs& costs, bool overlap) {
    const Layout layout(header);
    check_costs(costs, header);
    std::vector<Instruction> instructions = serial_step(header, layout);
    for (Instruction& instruction : instructions) {
        instruction.cost = cost_of(instruction, header, layout, costs);
    }
    Dependencies(header, layout).fill(instructions);
    Indices order = overlap ? ListScheduler(instructions).order() : serial_order(instructions);
    Program program = header;
    program.buffers = layout.buffers();
    program.instructions = Numbering(std::move(instructions), std::move(order)).list();
    return program;
}

}  // namespace ie::core

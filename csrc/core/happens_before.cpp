#include "core/happens_before.h"

#include <algorithm>

#include "core/error.h"

namespace ie::core {
namespace {

// For each instruction, the ones it waits for: `after`, and the one before it in its lane.
std::vector<std::vector<std::int64_t>> waits_of(const std::vector<Instruction>& instructions) {
    std::array<std::int64_t, kNumLanes> last_in_lane;
    last_in_lane.fill(-1);
    std::vector<std::vector<std::int64_t>> waits;
    for (std::int64_t i = 0; i < std::ssize(instructions); ++i) {
        waits.push_back(instructions[i].after);
        for (const std::int64_t before : waits.back()) {
            IE_CHECK(before < std::ssize(instructions), i, ": waits for ", before, ", which does not exist");
        }
        std::int64_t& last = last_in_lane[static_cast<std::size_t>(instructions[i].lane)];
        if (last >= 0) waits.back().push_back(last);
        last = i;
    }
    return waits;
}

// Kahn's algorithm, in rounds: all numbers in an order in which they may run.
std::vector<std::int64_t> sort(const std::vector<std::vector<std::int64_t>>& waits) {
    std::vector<std::vector<std::int64_t>> followers(waits.size());
    std::vector<std::int64_t> num_waits;
    std::vector<std::int64_t> order;
    for (std::int64_t i = 0; i < std::ssize(waits); ++i) {
        for (const std::int64_t before : waits[i]) followers[before].push_back(i);
        num_waits.push_back(std::ssize(waits[i]));
        if (waits[i].empty()) order.push_back(i);
    }
    for (std::size_t next = 0; next < order.size(); ++next) {
        for (const std::int64_t follower : followers[order[next]]) {
            if (--num_waits[follower] == 0) order.push_back(follower);
        }
    }
    const auto stuck = std::ranges::find_if(num_waits, [](std::int64_t count) { return count > 0; });
    IE_CHECK(stuck == num_waits.end(), stuck - num_waits.begin(),
             ": deadlock, it waits for an instruction that waits for it");
    return order;
}

}  // namespace

HappensBefore::HappensBefore(const std::vector<Instruction>& instructions) : started_(instructions.size()) {
    std::array<std::int64_t, kNumLanes> num_in_lane{};
    for (const Instruction& instruction : instructions) {
        places_.push_back({instruction.lane, num_in_lane[static_cast<std::size_t>(instruction.lane)]++});
    }
    const auto waits = waits_of(instructions);
    order_ = sort(waits);
    for (const std::int64_t i : order_) {
        for (const std::int64_t before : waits[i]) {
            started_[i].join(started_[before]);
            started_[i].add(places_[before]);
        }
    }
}

}  // namespace ie::core

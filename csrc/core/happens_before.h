// Which instructions have ended before others start, whatever the lanes' speeds: the order of each lane,
// `after`, and what follows from the two. Vector clocks over lanes, so a question costs one comparison.
#pragma once

#include <array>

#include "core/program.h"

namespace ie::core {

// An instruction as its lane counts: the first of a lane has position 0.
struct Place {
    Lane lane;
    std::int64_t position;
};

// How many instructions of each lane have ended.
class Clock {
  public:
    bool covers(Place place) const { return ended_[index(place.lane)] > place.position; }
    void add(Place place) { raise(index(place.lane), place.position + 1); }
    void join(const Clock& other) {
        for (std::size_t lane = 0; lane < ended_.size(); ++lane) raise(lane, other.ended_[lane]);
    }

  private:
    static std::size_t index(Lane lane) { return static_cast<std::size_t>(lane); }
    void raise(std::size_t lane, std::int64_t count) { ended_[lane] = std::max(ended_[lane], count); }

    std::array<std::int64_t, kNumLanes> ended_{};
};

class HappensBefore {
  public:
    // Throws ie::Error if an instruction waits for one that does not exist, or some wait for each other.
    explicit HappensBefore(const std::vector<Instruction>& instructions);

    // All numbers, in one order in which they may run.
    const std::vector<std::int64_t>& order() const { return order_; }

    bool operator()(std::int64_t first, std::int64_t second) const {
        return started_[second].covers(places_[first]);
    }

  private:
    std::vector<Place> places_;
    std::vector<Clock> started_;  // what has ended when an instruction starts
    std::vector<std::int64_t> order_;
};

}  // namespace ie::core

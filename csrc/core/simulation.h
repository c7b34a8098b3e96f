// When each instruction of a Program runs, were it executed on machines of given rates: discrete events over
// the same lanes, in the same order, as the executor's. All ranks are alike, so one of them is all of them.
//
// An instruction starts when its lane is free and what it comes after has ended. Transfers that are under way
// at once over one kind of link (near, far) share it evenly, and computing runs slower beside any transfer,
// which takes processors and memory bandwidth from it.
#pragma once

#include <memory>

#include "core/costs.h"

namespace ie::core {

struct Span {
    std::int64_t start;  // ns from the start of the step
    std::int64_t end;
};

class Simulation {
  public:
    // Throws ie::Error if the Program's header does not add up.
    explicit Simulation(Program program);

    // The span of every instruction, by number. Beside a transfer computing takes 1 + contention times as
    // long. Throws ie::Error if the costs don't belong to the Program, or if instructions wait for each
    // other.
    std::vector<Span> run(const Costs& costs, double contention) const;

    const Program& program() const { return *program_; }

  private:
    std::unique_ptr<const Program> program_;  // layout_ refers to it
    Layout layout_;
};

}  // namespace ie::core

// What an instruction costs, in whole nanoseconds. The table comes from measurement or from FLOPs and bytes
// (internevo_engine/schedule/costs.py); here only integers are left, so that every rank decides alike.
#pragma once

#include "core/layout.h"

namespace ie::core {

struct Rate {
    std::int64_t latency_ns;
    std::int64_t bytes_per_us;

    std::int64_t ns(std::int64_t bytes) const { return latency_ns + bytes * 1000 / bytes_per_us; }
};

struct Costs {
    std::vector<std::int64_t> calls;  // of each call of the Program
    std::vector<Rate> gather;         // all-gather over each level
    std::vector<Rate> reduce;         // reduce-scatter or all-reduce over each level
    Rate memory;                      // a pass over local memory
};

// Throws ie::Error if the costs don't belong to this Program.
void check_costs(const Costs& costs, const Program& program);

std::int64_t cost_of(const Instruction& instruction, const Program& program, const Layout& layout,
                     const Costs& costs);

}  // namespace ie::core

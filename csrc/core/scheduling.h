// From the header of a Program to the whole of it: list scheduling over lanes, by simulated time.
//
// The serial step says what happens on which data; from it follow the dependencies (reads after writes,
// writes after reads, and the two windows below). Then every lane that is idle takes, of its instructions
// that may start, the earliest in serial order: so parameters come first-needed first, gradients leave as
// soon as their bucket is complete, and waiting lanes look ahead. Compute keeps its serial order, for the
// sake of activation memory.
//
// window_bytes bounds what looking ahead may cost: a gather waits until the gathered parameters fit, and a
// call that completes a bucket of gradients waits until the packed gradients fit. Both are ordinary
// dependencies, so the bound holds however slow a lane is. (A single bucket of packed gradients may exceed
// it.)
//
// Without overlap the serial step is the Program, each instruction after the one before: the same arithmetic.
#pragma once

#include "core/costs.h"

namespace ie::core {

// Pure, in integers: equal arguments give an equal Program on every rank. `header` has no instructions.
// Throws ie::Error if it does not add up, or if window_bytes does not hold the parameters of one call.
Program schedule(const Program& header, const Costs& costs, bool overlap);

}  // namespace ie::core

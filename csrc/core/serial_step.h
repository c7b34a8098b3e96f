// One training step in the order of a single worker that never looks ahead: parameters are refreshed and
// gathered right before their call, gradients packed, reduced and accumulated right after theirs, and
// everything is freed after its last reader. It fixes what is done and on which data; scheduling.h decides
// only when.
#pragma once

#include "core/layout.h"

namespace ie::core {

// Instructions with all operands and sizes; `after` and `cost` are still empty.
std::vector<Instruction> serial_step(const Program& header, const Layout& layout);

}  // namespace ie::core

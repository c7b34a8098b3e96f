// Follows the data of a Program without races through one order of its instructions, and says where an
// instruction does not find what it needs. Instead of numbers a buffer holds how complete it is.
#pragma once

#include "core/layout.h"

namespace ie::core {

// One line for each problem. Operands are those of the layout, and `order` is one in which instructions may
// run.
std::vector<std::string> follow_data(const Program& program, const Layout& layout,
                                     const std::vector<std::int64_t>& order);

}  // namespace ie::core

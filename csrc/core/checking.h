// The checker: refuses every Program that could compute something else than one training step, on any
// interleaving of its lanes. It sees the Program and nothing else, and runs before every first step.
//
// It looks in this order, and goes on only where the stage before found nothing:
//   1. the header adds up, and the buffers are the ones it implies, in name, bytes and lifetime;
//   2. every instruction stands in its lane and has the operands, level and bytes of its kind;
//   3. no instruction waits for itself;
//   4. no races: of two instructions that touch a buffer, one of them writing (or freeing), one surely ends
//   before the
//      other starts. Collectives have one order for all ranks, for lanes keep their order and a communicator
//      belongs to one (lane, level);
//   5. with 4, every execution computes what one order computes. That order is followed: nothing is read
//   before it
//      exists or after it is freed, no transient is born twice or left alive; every call runs once a
//      micro-batch; parameters are whole when they are read and every reduction, accumulation, update and
//      refresh happens once, on complete data, in the order of levels;
//   6. gathered parameters stay within window_bytes.
#pragma once

#include "core/program.h"

namespace ie::core {

// One line for each problem, with the number of the instruction; empty: the Program is right.
std::vector<std::string> check_program(const Program& program);

}  // namespace ie::core

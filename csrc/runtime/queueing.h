// All that differs between lanes on threads and lanes on streams, as one value; the executor's actions don't
// ask which they are.
#pragma once

#include <memory>
#include <string>

#include "core/program.h"
#include "runtime/lane_runner.h"
#include "runtime/releases.h"
#include "runtime/transfers.h"

namespace ie::runtime {

struct Queueing {
    std::unique_ptr<LaneRunner> lanes;
    Releases releases;
    Transfers::Wait wait;  // for a collective, inside an instruction
};

// `name` is a row of the table there: "threads" or "streams". Throws ie::Error for any other.
Queueing make_queueing(const std::string& name, const core::Program& program, at::Device device);

}  // namespace ie::runtime

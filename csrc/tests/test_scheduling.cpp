// The scheduler on every shape of plan; that its Programs compute the step is judged from Python.
#include <algorithm>

#include "core/checking.h"
#include "core/error.h"
#include "tests/check.h"
#include "tests/small_step.h"

using namespace ie::core;
using namespace ie::tests;

namespace {

const std::vector<std::string> kPlans = {
    kLevels,
    "level OS0 size=2 stride=1 link=near\nlevel OS1 size=2 stride=2 link=far\n",
    "level G0 size=2 stride=1 link=near\nlevel R1 size=2 stride=2 link=far\n",
    "level P0 size=2 stride=1 link=near\nlevel P1 size=2 stride=2 link=far\n",
    "level R0 size=4 stride=1 link=near\n",
};

void every_plan_is_scheduled_and_accepted() {
    for (const std::string& levels : kPlans) {
        for (const char* mode : {"fast", "ordered", "invariant"}) {
            for (const bool overlap : {true, false}) {
                const Program program = small_program(levels, mode, overlap);
                EXPECT(check_program(program).empty());
                EXPECT(print_program(small_program(levels, mode, overlap)) == print_program(program));
            }
        }
    }
}

void overlap_changes_when_but_never_what() {
    const Program overlapped = small_program();
    const Program chain = small_program(kLevels, "fast", false);
    EXPECT(overlapped.instructions.size() == chain.instructions.size());
    for (const Instruction& each : chain.instructions) {
        EXPECT(std::ranges::any_of(overlapped.instructions, [&](const Instruction& other) {
            return other.kind == each.kind && other.what == each.what && other.level == each.level &&
                   other.micro_batch == each.micro_batch && other.reads == each.reads &&
                   other.writes == each.writes;
        }));
    }
}

void only_needed_dependencies_are_kept() {
    for (Program program : {small_program(), small_program(kPlans[1], "ordered")}) {
        for (Instruction& instruction : program.instructions) {
            const std::vector<std::int64_t> after = instruction.after;
            for (std::size_t i = 0; i < after.size(); ++i) {
                instruction.after = after;
                instruction.after.erase(instruction.after.begin() + static_cast<std::ptrdiff_t>(i));
                EXPECT(!check_program(program).empty());
            }
            instruction.after = after;
        }
    }
}

void a_window_bounds_what_is_gathered() {
    const Program header = small_header(kLevels, "fast", 128);  // one bucket
    const Program program = schedule(header, small_costs(header), true);
    EXPECT(check_program(program).empty());
    const std::string message = message_of<ie::Error>([] {
        const Program small = small_header(kLevels, "fast", 100);
        schedule(small, small_costs(small), true);
    });
    EXPECT(message == "window_bytes=100 does not hold the 128 bytes of parameters that one call reads");
}

void headers_and_costs_that_do_not_add_up_are_named() {
    const auto message = [](Program header, std::size_t num_calls = 4) {
        Costs costs = small_costs(header);
        costs.calls.resize(num_calls);
        return message_of<ie::Error>([&] { schedule(header, costs, true); });
    };
    Program header = small_header();
    EXPECT(message(header).empty());
    EXPECT(message(header, 3) ==
           "got costs of 3 calls and of 2 and 2 levels for a Program of 4 calls and 2 levels");
    header.buckets[1].numel = 34;
    EXPECT(message(header) == "a bucket of 34 elements can't be cut into 4 equal slices");
    header = small_header();
    header.calls[0].buckets = {2};
    EXPECT(message(header) == "call fwd uses bucket 2 of 2");
    header = small_header();
    header.buckets[1].grads = {"%g1"};
    EXPECT(message(header) == "gradient %g1 is written by no call, or belongs to two buckets");
}

}  // namespace

int main() {
    every_plan_is_scheduled_and_accepted();
    overlap_changes_when_but_never_what();
    only_needed_dependencies_are_kept();
    a_window_bounds_what_is_gathered();
    headers_and_costs_that_do_not_add_up_are_named();
    return ie::tests::failures > 0;
}

// The simulator: the order of the Program, links that are shared, computing that is slowed.
#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/simulation.h"
#include "tests/check.h"
#include "tests/small_step.h"

using namespace ie::core;
using namespace ie::tests;

namespace {

std::vector<Span> spans_of(const Program& program, double contention = 0) {
    return Simulation(program).run(small_costs(program), contention);
}

std::int64_t makespan(const std::vector<Span>& spans) {
    return std::ranges::max(spans, {}, &Span::end).end;
}

void lanes_run_one_by_one_and_wait() {
    for (const bool overlap : {true, false}) {
        const Program program = small_program(kLevels, "fast", overlap);
        const auto spans = spans_of(program);
        std::array<std::int64_t, kNumLanes> lane_free{};
        for (std::size_t i = 0; i < spans.size(); ++i) {
            const Instruction& instruction = program.instructions[i];
            EXPECT(spans[i].start >= lane_free[static_cast<std::size_t>(instruction.lane)]);
            lane_free[static_cast<std::size_t>(instruction.lane)] = spans[i].end;
            for (const std::int64_t before : instruction.after) EXPECT(spans[before].end <= spans[i].start);
            EXPECT(spans[i].end - spans[i].start >= instruction.cost);
        }
    }
}

void one_by_one_a_step_takes_the_sum_of_its_costs() {
    const Program program = small_program(kLevels, "fast", false);
    std::int64_t sum = 0;
    for (const Instruction& instruction : program.instructions) sum += instruction.cost;
    EXPECT(makespan(spans_of(program, 0.5)) == sum);
}

void transfers_over_one_link_share_it() {
    Program program = small_program(kLevels, "fast", false);
    const auto gather = first(program, Kind::kGather);
    Instruction one = program.instructions[gather];
    one.after.clear();
    Instruction other = one;
    other.lane = Lane::kNear;
    program.instructions = {one, other};
    const auto spans = spans_of(program);
    EXPECT(spans[0].end == 2 * one.cost);
    EXPECT(spans[1].end == 2 * one.cost);
}

void computing_is_slower_beside_a_transfer() {
    Program program = small_program(kLevels, "fast", false);
    Instruction transfer = program.instructions[first(program, Kind::kGather)];
    Instruction compute = program.instructions[first(program, Kind::kCompute)];
    transfer.after.clear();
    compute.after.clear();
    program.instructions = {transfer, compute};
    const auto spans = spans_of(program, 1.0);
    EXPECT(transfer.cost < 2 * compute.cost);
    EXPECT(spans[1].end == compute.cost + transfer.cost / 2);
}

void instructions_that_wait_for_each_other_are_refused() {
    Program program = small_program();
    program.instructions[0].after = {std::ssize(program.instructions) - 1};
    EXPECT(message_of<ie::Error>([&] { spans_of(program); }).starts_with("nothing can start at "));
}

}  // namespace

int main() {
    lanes_run_one_by_one_and_wait();
    one_by_one_a_step_takes_the_sum_of_its_costs();
    transfers_over_one_link_share_it();
    computing_is_slower_beside_a_transfer();
    instructions_that_wait_for_each_other_are_refused();
    return ie::tests::failures > 0;
}

// The checker: one broken Program for each kind of refusal, and what it says.
#include <algorithm>

#include "core/checking.h"
#include "tests/check.h"
#include "tests/small_step.h"

using namespace ie::core;
using namespace ie::tests;

namespace {

// The first problem after an edit of the small Program. Without overlap its lanes can't race.
template <typename Edit>
std::string problem(Edit edit, bool overlap = true) {
    Program program = small_program(kLevels, "fast", overlap);
    edit(program);
    const auto problems = check_program(program);
    return problems.empty() ? "" : problems[0];
}

template <typename Edit>
std::string problem_at(Kind kind, Edit edit) {
    return problem([&](Program& program) { edit(program.instructions[first(program, kind)]); });
}

bool says(const std::string& problem, const std::string& words) {
    if (problem.find(words) == std::string::npos) std::printf("it says: %s\n", problem.c_str());
    return problem.find(words) != std::string::npos;
}

void headers_and_buffers_must_add_up() {
    EXPECT(problem([](Program&) {}).empty());
    EXPECT(says(problem([](Program& p) { p.world = 8; }), "the levels make up 4 ranks, not world=8"));
    EXPECT(says(problem([](Program& p) { p.mode = Mode::kInvariant, p.micro_batches = 3; }),
                "mode=invariant needs powers of two, not world=4 and micro_batches=3"));
    EXPECT(says(problem([](Program& p) { p.levels[1].stride = 4; }), "level OS1 has size=2 and stride=4"));
    EXPECT(says(problem([](Program& p) { p.levels[1].name = "OS0"; }), "level OS0 must have the number 1"));
    EXPECT(says(problem([](Program& p) { std::swap(p.levels[0].state, p.levels[1].state); }), "later state"));
    EXPECT(
        says(problem([](Program& p) { p.buffers[0].bytes *= 2; }), "buffer param[0] of 256 bytes must be"));
    EXPECT(says(problem([](Program& p) { p.buffers.pop_back(); }), "implies 17 buffers, found 16"));
    EXPECT(says(problem([](Program& p) { p.values.pop_back(); }), "%dh, which is not declared"));
}

void operands_must_be_those_of_the_kind() {
    EXPECT(
        says(problem_at(Kind::kReduce, [](Instruction& i) { i.bytes /= 2; }), "must send 128 bytes, not 64"));
    EXPECT(says(problem_at(Kind::kReduce, [](Instruction& i) { i.level = "OS1"; }),
                "reduce m=0 makes no sense"));
    EXPECT(says(problem_at(Kind::kReduce, [](Instruction& i) { i.level = "G9"; }), "there is no level G9"));
    EXPECT(
        says(problem_at(Kind::kReduce, [](Instruction& i) { i.lane = Lane::kFar; }), "belongs in lane near"));
    EXPECT(says(problem_at(Kind::kUpdate, [](Instruction& i) { i.what = "bucket[7]"; }),
                "there is no bucket[7]"));
    EXPECT(says(problem_at(Kind::kCompute, [](Instruction& i) { i.what = "bwd"; }),
                "must read %m0.dh,param[1]"));
    EXPECT(
        says(problem_at(Kind::kPack, [](Instruction& i) { i.writes = {"grad[1]"}; }), "must write grad[0]"));
}

void waiting_in_a_circle_is_refused() {
    EXPECT(says(problem_at(Kind::kCompute, [](Instruction& i) { i.after.push_back(50); }), "deadlock"));
}

void a_missing_dependency_is_a_race() {
    EXPECT(says(problem_at(Kind::kReduce, [](Instruction& i) { i.after.clear(); }),
                "for grad[0]: neither waits for the other"));
}

void lives_begin_and_end_once() {
    const auto drop = [](Kind kind) {
        return problem(
            [&](Program& p) {  // it still waits, and does nothing
                Instruction& dropped = p.instructions[first(p, kind)];
                dropped = {.lane = dropped.lane, .kind = Kind::kFree, .what = "-", .after = dropped.after};
            },
            false);
    };
    EXPECT(says(drop(Kind::kFree), "param[1], which was not freed since it was written"));
    EXPECT(says(drop(Kind::kCompute), "compute reads %m0.h, which does not exist yet or was freed"));
    EXPECT(says(drop(Kind::kPack), "reduce reads grad[0], which does not exist yet or was freed"));
    EXPECT(says(drop(Kind::kRefresh), "gather needs pshard[1] complete over the levels after its own"));
    EXPECT(says(drop(Kind::kAccumulate), "needs gsum[0] with exactly the micro-batches before"));
    EXPECT(says(drop(Kind::kUpdate), "no update of os[1]"));
}

void updates_come_after_every_use_of_old_parameters() {
    Program program = small_program(kLevels, "fast", false);
    const std::size_t update = first(program, Kind::kUpdate);
    Instruction early = program.instructions[update];
    program.instructions[update] = {.lane = Lane::kOptimizer, .kind = Kind::kFree, .what = "-"};
    program.instructions[update].after = early.after;
    program.instructions.push_back(early);
    program.instructions.back().after = {static_cast<std::int64_t>(update)};
    EXPECT(!check_program(program).empty());  // its gradient was freed
}

void gathered_parameters_must_stay_within_the_window() {
    EXPECT(says(problem([](Program& p) { p.window_bytes = 128; }),
                "up to 192 bytes of gathered parameters are alive"));
}

}  // namespace

int main() {
    headers_and_buffers_must_add_up();
    operands_must_be_those_of_the_kind();
    waiting_in_a_circle_is_refused();
    a_missing_dependency_is_a_race();
    lives_begin_and_end_once();
    updates_come_after_every_use_of_old_parameters();
    gathered_parameters_must_stay_within_the_window();
    return ie::tests::failures > 0;
}

// Faults on purpose: each happens once, at the rank, point and passing that the plan says, and is in the log.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/faults.h"
#include "tests/check.h"

using namespace ie::core;

namespace {

const std::string kLog = "/tmp/test_faults." + std::to_string(getpid()) + ".log";

std::vector<std::string> logged() {
    std::vector<std::string> lines;
    std::ifstream file(kLog);
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

void arm(const std::string& plan, std::int64_t rank = 0, std::int64_t seed = 1) {
    std::remove(kLog.c_str());
    arm_faults(plan, seed, rank, kLog);
}

// The passings, from 1, at which something is left to do.
std::vector<int> passings(FaultPoint point, int count) {
    std::vector<int> found;
    for (int hit = 1; hit <= count; ++hit) {
        if (fault(point)) found.push_back(hit);
    }
    return found;
}

void nothing_happens_disarmed() {
    arm("write@0:hit=1:short");
    disarm_faults();
    EXPECT(!fault(FaultPoint::kWrite));
}

void a_fault_happens_once_at_its_passing() {
    arm("write@0:hit=3:errno=28;write@0:hit=5:short;create@0:hit=1:errno=5");
    EXPECT(!fault(FaultPoint::kWrite) && !fault(FaultPoint::kWrite));
    const auto third = fault(FaultPoint::kWrite);
    EXPECT(third && third->action == FaultAction::kErrno && third->number == 28);
    EXPECT((passings(FaultPoint::kWrite, 9) == std::vector{2}));
    EXPECT((logged() == std::vector<std::string>{"write@0:hit=3:errno=28", "write@0:hit=5:short"}));
}

void what_the_log_holds_is_not_armed_again() {
    arm("write@0:hit=1:short;write@0:hit=2:short");
    EXPECT(fault(FaultPoint::kWrite));
    arm_faults("write@0:hit=1:short;write@0:hit=2:short", 1, 0, kLog);
    EXPECT((passings(FaultPoint::kWrite, 9) == std::vector{2}));
}

void other_ranks_and_steps_are_left_alone() {
    arm("gradient@1:hit=1:nan");
    EXPECT(passings(FaultPoint::kGradient, 9).empty());
    arm("gradient@1:step=4:flip=22", 1);
    for (int step = 1; step <= 6; ++step) {
        faults_in_step(step);
        EXPECT(fault(FaultPoint::kGradient).has_value() == (step == 4));
        EXPECT(!fault(FaultPoint::kGradient));
    }
}

void draws_are_a_hash_of_seed_and_rank() {
    std::vector<std::vector<int>> found;
    for (const auto& [seed, rank] : {std::pair{1, 0}, {1, 0}, {2, 0}, {1, 3}}) {
        arm("write@" + std::to_string(rank) + ":p=0.01:short", rank, seed);
        found.push_back(passings(FaultPoint::kWrite, 5000));
        EXPECT(found.back().size() == 1);
    }
    EXPECT(found[0] == found[1]);
    EXPECT(found[0] != found[2] && found[0] != found[3]);
}

void raise_throws_and_says_that_it_was_on_purpose() {
    arm("step@0:hit=1:raise");
    EXPECT(ie::tests::message_of<ie::Error>([&] {
               fault(FaultPoint::kStep);
           }).find("a fault on purpose: step@0:hit=1:raise") != std::string::npos);
}

void a_plan_that_can_not_be_read_is_refused() {
    for (const char* plan :
         {"", "write", "write@0", "write@0:hit=1", "write@0:hit=0:short", "write@x:hit=1:short",
          "nowhere@0:hit=1:kill", "write@0:hit=1:explode", "gradient@0:hit=1:kill", "write@0:often:short",
          "write@0:hit=1:errno=many", "write@0:hit=1:short;"}) {
        EXPECT(ie::tests::message_of<ie::Error>([&] { arm(plan); }).find("fault") != std::string::npos);
    }
}

}  // namespace

int main() {
    nothing_happens_disarmed();
    a_fault_happens_once_at_its_passing();
    what_the_log_holds_is_not_armed_again();
    other_ranks_and_steps_are_left_alone();
    draws_are_a_hash_of_seed_and_rank();
    raise_throws_and_says_that_it_was_on_purpose();
    a_plan_that_can_not_be_read_is_refused();
    std::remove(kLog.c_str());
    return ie::tests::failures > 0;
}

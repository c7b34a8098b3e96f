// The watchdog: whom it names for what it sees, what it sees of a board, and that its thread ends.
#include <sys/mman.h>
#include <unistd.h>

#include <future>

#include "core/error.h"
#include "runtime/watchdog.h"
#include "tests/check.h"

using namespace ie::runtime;

namespace {

using ie::core::Lane;

// A rank in a step of 0.1 s, that moved a moment ago.
Sight at(std::int64_t step, std::int64_t instruction) {
    return {.phase = Phase::kStep,
            .step = step,
            .at = instruction,
            .longest_step_s = 0.1,
            .silent_s = 0.05,
            .gil_s = 0.1,
            .still_s = 0.1};
}

Sight still(Sight rank, double seconds) {
    rank.still_s = seconds;
    return rank;
}

Sight silent(Sight rank, double seconds) {
    rank.silent_s = rank.gil_s = rank.still_s = seconds;
    return rank;
}

Sight without_gil(Sight rank, double seconds) {
    rank.gil_s = rank.still_s = seconds;
    return rank;
}

Sight in(Phase phase, Sight rank) {
    rank.phase = phase;
    return rank;
}

Sight with_steps_of(double seconds, Sight rank) {
    rank.longest_step_s = seconds;
    return rank;
}

struct Case {
    const char* what;
    std::vector<Sight> ranks;
    Verdict expected;
};

const Case kCases[] = {
    {"all is well", {at(7, 3), at(7, 4)}, {}},
    {"others wait for 1 s", {at(7, 3), still(at(7, 4), 1)}, {}},
    {"a rank stops for 1 s", {at(7, 4), silent(at(7, 3), 1)}, {}},
    {"a rank is stopped", {still(at(7, 4), 2.4), silent(at(7, 3), 2.4)}, {Cause::kSilent, 1}},
    {"also while it compiles", {at(0, 0), silent(in(Phase::kCompile, at(0, 0)), 2.4)}, {Cause::kSilent, 1}},
    {"a silent rank is named before one that waits",
     {silent(at(7, 4), 2.4), still(at(7, 3), 9)},
     {Cause::kSilent, 0}},
    {"one that has left is not missed", {silent(in(Phase::kGone, at(7, 9)), 60), at(7, 4)}, {}},
    {"one that is about to leave neither",
     {silent(in(Phase::kEnd, at(7, 9)), 60), in(Phase::kEnd, at(7, 9))},
     {}},
    {"one that has not come yet neither", {silent(in(Phase::kAbsent, at(0, 0)), 60), at(0, 0)}, {}},
    {"the GIL is held", {still(at(7, 4), 2.6), without_gil(at(7, 3), 2.6)}, {Cause::kGil, 1}},
    {"also between steps",
     {still(at(8, 0), 2.6), without_gil(in(Phase::kLoop, at(7, 9)), 2.6)},
     {Cause::kGil, 1}},
    {"compiling may hold it", {at(0, 0), without_gil(in(Phase::kCompile, at(0, 0)), 60)}, {}},
    {"so may the first step", {with_steps_of(0, at(1, 0)), with_steps_of(0, without_gil(at(1, 0), 60))}, {}},
    {"the one behind stands still", {still(at(7, 5), 2.6), still(at(7, 3), 2.6)}, {Cause::kStill, 1}},
    {"or is a step behind", {still(at(8, 0), 2.6), still(at(7, 30), 2.6)}, {Cause::kStill, 1}},
    {"it computes as long as it did before",
     {with_steps_of(2, still(at(7, 5), 9)), with_steps_of(2, still(at(7, 3), 9))},
     {}},
    {"five times as long is too long",
     {with_steps_of(2, still(at(7, 5), 11)), with_steps_of(2, still(at(7, 3), 11))},
     {Cause::kStill, 1}},
    {"the one behind moves", {still(at(7, 5), 60), at(7, 3)}, {}},
    {"of equals none can be named", {still(at(7, 5), 60), still(at(7, 5), 60), still(at(7, 6), 60)}, {}},
    {"rank 0 writes records for long", {still(in(Phase::kLoop, at(7, 9)), 60), still(at(8, 0), 60)}, {}},
    {"but not for ever", {still(in(Phase::kLoop, at(7, 9)), 301), still(at(8, 0), 301)}, {Cause::kStill, 0}},
    {"rank 0 saves, the others go on to wait",
     {still(in(Phase::kSave, at(7, 9)), 900), still(at(8, 0), 900)},
     {}},
};

void the_culprit_is_named_and_nobody_else() {
    for (const Case& one : kCases) {
        const Verdict found = judge(one.ranks);
        const bool is_right = found.cause == one.expected.cause && found.culprit == one.expected.culprit;
        EXPECT(is_right);
        if (!is_right)
            std::printf("  %s: cause %d, rank %d\n", one.what, static_cast<int>(found.cause), found.culprit);
    }
}

void what_is_said_names_rank_place_and_time() {
    const std::vector<Sight> ranks = {at(7, 4), silent(at(7, 3), 2.4)};
    EXPECT(describe(judge(ranks), ranks) ==
           "rank 1 has been silent for 2.4 s: stopped, or cut off (step, step 7, instruction 3)");
}

// A file in memory, mapped twice, as two processes do it.
void what_a_rank_does_is_seen_through_another_mapping() {
    const int file = ::memfd_create("board", 0);
    const Board own(file, 2), other(file, 2);
    Slot& slot = own.slot(1);
    slot.begin_step(5);
    slot.begin(Lane::kCompute, 8);
    slot.begin(Lane::kNear, 6);
    EXPECT(other.slot(1).at() == 6);
    slot.end(Lane::kNear);
    EXPECT(other.slot(1).at() == 8);
    slot.end(Lane::kCompute);
    EXPECT(other.slot(1).at() == 2);  // none runs: as many as have ended
    const std::vector<Begun> begun = other.slot(1).begun();
    EXPECT(begun.size() == 2 && begun[0].instruction == 8 && begun[1].instruction == 6 && begun[1].step == 5);
    slot.enter(Phase::kLoop);
    EXPECT(other.slot(1).longest_step_ns > 0);
    for (int i = 0; i < 100; ++i) slot.begin(Lane::kHost, i);
    EXPECT(other.slot(1).begun().size() == Slot::kNumBegun);
    EXPECT(other.slot(1).begun().back().instruction == 99);
    ::close(file);
}

void ages_count_from_the_last_move_and_anew_after_a_stop_of_our_own() {
    const Board board(-1, 1);
    Observer observer(board);
    const auto look = [&](double now_s) { return observer.look(now_s)[0]; };
    look(100);
    for (double now_s = 100.5; now_s < 103; now_s += 0.5) look(now_s);
    EXPECT(look(103).silent_s == 3);
    board.slot(0).beats = 1;
    EXPECT(look(103.5).silent_s == 0 && look(103.5).gil_s == 3.5);
    EXPECT(look(200).gil_s == 0);
}

void a_watchdog_beats_and_ends_when_it_is_told() {
    const auto board = std::make_shared<Board>(-1, 2);
    board->slot(0).enter(Phase::kStart);
    {
        const Watchdog watchdog(board, 0, [](const Verdict&, const std::string&) { EXPECT(false); });
        while (board->slot(0).beats < 3) std::this_thread::yield();
    }
    const std::int64_t beats = board->slot(0).beats;
    EXPECT(beats >= 3);
}

void a_watchdog_acts_once_when_a_rank_is_lost() {
    const auto board = std::make_shared<Board>(-1, 2);
    std::promise<std::string> said;
    const Watchdog watchdog(board, 0, [&](const Verdict&, const std::string& text) { said.set_value(text); });
    board->lost() = 2;
    EXPECT(said.get_future().get() == "rank 1 has ended (absent, step 0)");
    EXPECT(board->slot(0).culprit == 1);
}

void unknown_names_are_refused() {
    EXPECT(phase_named("save") == Phase::kSave);
    EXPECT(ie::tests::message_of<ie::Error>([] { phase_named("lunch"); }) == "no phase is called 'lunch'");
    EXPECT(ie::tests::message_of<ie::Error>([] { Board(-1, 2).slot(2); }) == "rank 2 is not one of 2");
}

}  // namespace

int main() {
    the_culprit_is_named_and_nobody_else();
    what_is_said_names_rank_place_and_time();
    what_a_rank_does_is_seen_through_another_mapping();
    ages_count_from_the_last_move_and_anew_after_a_stop_of_our_own();
    a_watchdog_beats_and_ends_when_it_is_told();
    a_watchdog_acts_once_when_a_rank_is_lost();
    unknown_names_are_refused();
    return ie::tests::failures > 0;
}

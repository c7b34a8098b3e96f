// The text of a Program, and the clocks that say what happens before what.
#include "core/error.h"
#include "core/happens_before.h"
#include "tests/check.h"
#include "tests/small_step.h"

using namespace ie::core;
using ie::tests::small_program;

namespace {

std::string refusal(const std::string& text) {
    return ie::tests::message_of<ie::Error>([&] { parse_program(text); });
}

Instruction in_lane(Lane lane, std::vector<std::int64_t> after) {
    return {.lane = lane, .kind = Kind::kFree, .what = "-", .after = std::move(after)};
}

void text_reads_back_to_itself() {
    const std::string text = print_program(small_program());
    EXPECT(print_program(parse_program(text)) == text);
}

void lines_that_can_not_be_read_are_named() {
    const std::string head =
        "program v1 world=1 micro_batches=1 mode=fast param_bytes=2 wire_bytes=4 window_bytes=0 loss=-\n";
    EXPECT(refusal("") == "line 1: a Program starts with 'program v1 ...'");
    EXPECT(refusal("program v2") == "line 1: a Program starts with 'program v1 ...'");
    EXPECT(refusal("program v1 world=1") == "line 1: micro_batches= is missing");
    EXPECT(refusal(head + "bucket 0 numel=1x grads=-") == "line 2: '1x' is not a whole number");
    EXPECT(refusal(head + "bucket 0 numel=-1 grads=-") == "line 2: '-1' is not a whole number");
    EXPECT(refusal(head + "level X0 size=2 stride=1 link=near") == "line 2: 'X' is unknown");
    EXPECT(refusal(head + "buffer b bytes=1") == "line 2: word 3 is missing");
    EXPECT(refusal(head + "1 compute compute x") == "expected instruction 0, found '1'");
    EXPECT(refusal(head + "0 nowhere compute x m=- level=-") == "line 2: 'nowhere' is unknown");
}

void lanes_and_dependencies_order_instructions() {
    const HappensBefore before({in_lane(Lane::kCompute, {}), in_lane(Lane::kCompute, {}),
                                in_lane(Lane::kHost, {0}), in_lane(Lane::kNear, {2}),
                                in_lane(Lane::kCompute, {3})});
    EXPECT(before(0, 1) && before(0, 2) && before(0, 3) && before(2, 4));
    EXPECT(!before(1, 2) && !before(2, 1) && !before(1, 3) && !before(1, 0));
    EXPECT(before.order().size() == 5);
}

void circles_are_deadlocks() {
    const auto message = [](const std::vector<Instruction>& instructions) {
        return ie::tests::message_of<ie::Error>([&] { HappensBefore{instructions}; });
    };
    EXPECT(message({in_lane(Lane::kHost, {1}), in_lane(Lane::kNear, {0})}).starts_with("0: deadlock"));
    EXPECT(message({in_lane(Lane::kHost, {1}), in_lane(Lane::kHost, {})}).starts_with("0: deadlock"));
    EXPECT(message({in_lane(Lane::kHost, {0})}).starts_with("0: deadlock"));
    EXPECT(message({in_lane(Lane::kHost, {7})}) == "0: waits for 7, which does not exist");
    EXPECT(message({in_lane(Lane::kHost, {1}), in_lane(Lane::kNear, {})})
               .empty());  // later in the text is no circle
}

}  // namespace

int main() {
    text_reads_back_to_itself();
    lines_that_can_not_be_read_are_named();
    lanes_and_dependencies_order_instructions();
    circles_are_deadlocks();
    return ie::tests::failures > 0;
}

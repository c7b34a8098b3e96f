// Lanes: order within a lane, order between lanes, and the end of a step by an error, with threads that the
// sanitizers watch.
#include <random>
#include <stdexcept>
#include <string>

#include "core/error.h"
#include "runtime/lanes.h"
#include "tests/check.h"

using namespace ie::runtime;

namespace {

using Queues = std::vector<std::vector<std::size_t>>;

constexpr std::size_t kNumLanes = 6;

// Random instructions, each after up to three earlier ones of any lane.
struct Work {
    Queues queues{kNumLanes};
    Queues after;

    Work(std::size_t size, unsigned seed) : after(size) {
        std::mt19937 random(seed);
        for (std::size_t i = 0; i < size; ++i) {
            queues[random() % kNumLanes].push_back(i);
            for (int k = 0; k < 3 && i > 0; ++k) after[i].push_back(random() % i);
        }
    }
};

void every_instruction_sees_what_it_waited_for_in_every_step() {
    const Work work(500, 1);
    Lanes lanes(work.queues, work.after);
    for (int step = 1; step <= 20; ++step) {
        std::vector<int> written(500);  // plain memory: only the lanes' order keeps it free of races
        bool in_order = true;
        lanes.run([&](std::size_t i) {
            for (const std::size_t earlier : work.after[i]) {
                if (written[earlier] != step) in_order = false;
            }
            written[i] = step;
        });
        EXPECT(in_order);
        EXPECT(written == std::vector<int>(500, step));
    }
}

void a_step_in_parts_runs_every_instruction_once_and_in_order() {
    const Work work(300, 3);
    Lanes lanes(work.queues, work.after);
    for (int step = 1; step <= 5; ++step) {
        std::vector<int> written(300);
        bool in_order = true;
        std::size_t end = 0;
        const auto execute = [&](std::size_t i) {
            if (i >= end || written[i] != 0) in_order = false;
            for (const std::size_t earlier : work.after[i]) {
                if (written[earlier] != step) in_order = false;
            }
            written[i] = step;
        };
        for (const std::size_t part : {0, 1, 120, 120, 299, 300}) {
            end = part;
            lanes.run(execute, part);
            EXPECT(lanes.next() == part % 300);
        }
        EXPECT(in_order);
        EXPECT(written == std::vector<int>(300, step));
    }
}

void a_lane_keeps_its_order_and_queue_0_runs_on_the_caller() {
    Lanes lanes({{1}, {3, 0, 2}}, {{}, {}, {}, {}});
    std::vector<std::size_t> order;
    std::thread::id thread;
    lanes.run([&](std::size_t i) {
        if (i == 1) {
            thread = std::this_thread::get_id();
        } else {
            order.push_back(i);
        }
    });
    EXPECT(order == std::vector<std::size_t>({3, 0, 2}));
    EXPECT(thread == std::this_thread::get_id());
}

void an_error_in_any_lane_ends_the_step_in_every_lane() {
    for (std::size_t failing = 0; failing < 60; ++failing) {
        const Work work(60, 2);
        Lanes lanes(work.queues, work.after);
        const auto run = [&] {
            lanes.run([&](std::size_t i) {
                if (i == failing) throw std::runtime_error("instruction " + std::to_string(i));
            });
        };
        EXPECT(ie::tests::message_of<std::runtime_error>(run) == "instruction " + std::to_string(failing));
        EXPECT(ie::tests::message_of<ie::Error>(run).starts_with("an earlier step failed"));
    }
}

void an_error_frees_a_lane_that_waits_for_the_outside() {
    Lanes lanes({{0}, {1}}, {{}, {}});
    std::atomic<bool> waits = false;
    const auto run = [&] {
        lanes.run([&](std::size_t i) {
            if (i == 1) {
                waits = true;
                lanes.wait_until([] { return false; });
            }
            while (!waits) std::this_thread::yield();
            throw std::runtime_error("boom");
        });
    };
    EXPECT(ie::tests::message_of<std::runtime_error>(run) == "boom");
}

void a_waker_ends_a_wait_and_may_outlive_the_lanes() {
    std::function<void()> late;
    {
        Lanes lanes({{0}, {1}}, {{}, {}});
        std::atomic<bool> done = false;
        std::thread outside;
        lanes.run([&](std::size_t i) {
            if (i == 0) return;
            outside = std::thread([&, wake = lanes.waker()] {
                done = true;
                wake();
            });
            lanes.wait_until([&] { return done.load(); });
        });
        EXPECT(done);
        outside.join();
        late = lanes.waker();
    }
    late();
}

void spans_follow_the_order_of_instructions() {
    Lanes lanes({{0, 2}, {1}}, {{}, {0}, {1}});
    lanes.run([](std::size_t) {});
    const auto& spans = lanes.spans();
    for (std::size_t i = 0; i < 3; ++i) EXPECT(spans[i].start <= spans[i].end);
    EXPECT(spans[0].end <= spans[1].start && spans[1].end <= spans[2].start);
}

}  // namespace

int main() {
    every_instruction_sees_what_it_waited_for_in_every_step();
    a_step_in_parts_runs_every_instruction_once_and_in_order();
    a_lane_keeps_its_order_and_queue_0_runs_on_the_caller();
    an_error_in_any_lane_ends_the_step_in_every_lane();
    an_error_frees_a_lane_that_waits_for_the_outside();
    a_waker_ends_a_wait_and_may_outlive_the_lanes();
    spans_follow_the_order_of_instructions();
    return ie::tests::failures != 0;
}

// Lanes as streams: the order that a device is told is the order of the Program, no more and no less, and
// memory goes back only where that order has come past its users. The device here only writes down.
#include <map>
#include <set>
#include <stdexcept>

#include "core/error.h"
#include "core/happens_before.h"
#include "runtime/releases.h"
#include "runtime/streams.h"
#include "tests/check.h"
#include "tests/small_step.h"

using namespace ie;
using runtime::Releases;
using runtime::Streams;

namespace {

using Ended = std::set<std::size_t>;  // instructions that must have ended; of step s, counted from s * size

// What the device of a real machine would keep to: each stream in order, and behind the events it waits for.
class RecordingDevice : public runtime::StreamDevice {
  public:
    void begin() override { EXPECT(entered_ == 0); }
    void enter(std::size_t lane) override { entered_ = lane; }
    void record(std::size_t event) override { events_[event] = streams_[entered_]; }
    void wait(std::size_t event) override {
        EXPECT(events_.contains(event));  // the wait for an event that nobody has recorded returns at once
        streams_[entered_].insert(events_[event].begin(), events_[event].end());
    }

    void queue(std::size_t instruction) {
        started[instruction] = streams_[entered_];
        streams_[entered_].insert(instruction);
    }
    std::size_t entered() const { return entered_; }
    const Ended& seen_by_caller() { return streams_[0]; }

    std::map<std::size_t, Ended> started;  // what has ended when an instruction starts

  private:
    std::size_t entered_ = 0;
    std::map<std::size_t, Ended> streams_, events_;
};

std::size_t lane_of(const core::Instruction& instruction) {
    return static_cast<std::size_t>(instruction.lane);
}

// The Program's streams, and a look at the device that they own.
std::pair<Streams, RecordingDevice*> record(const core::Program& program) {
    std::vector<std::size_t> lanes;
    std::vector<std::vector<std::size_t>> after;
    for (const core::Instruction& i : program.instructions) {
        lanes.push_back(lane_of(i));
        after.emplace_back(i.after.begin(), i.after.end());
    }
    auto device = std::make_unique<RecordingDevice>();
    RecordingDevice* seen = device.get();
    return {Streams(lanes, after, std::move(device)), seen};
}

std::vector<core::Program> programs() {
    const std::string sharded = "level P0 size=2 stride=1 link=near\nlevel G1 size=2 stride=2 link=far\n";
    const std::string split = "level G0 size=2 stride=1 link=near\nlevel R1 size=2 stride=2 link=far\n";
    return {tests::small_program(),
            tests::small_program(tests::kLevels, "fast", false),
            tests::small_program(tests::kLevels, "ordered"),
            tests::small_program(sharded),
            tests::small_program(sharded, "ordered"),
            tests::small_program(split)};
}

void streams_are_ordered_as_the_program_says_and_not_further() {
    for (const core::Program& program : programs()) {
        const core::HappensBefore before(program.instructions);
        auto [streams, device] = record(program);
        streams.run([&](std::size_t i) {
            EXPECT(device->entered() == lane_of(program.instructions[i]));
            device->queue(i);
        });
        const std::size_t size = program.instructions.size();
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t earlier = 0; earlier < size; ++earlier) {
                EXPECT(device->started[i].contains(earlier) == before(earlier, i));
            }
        }
    }
}

void a_step_is_work_on_the_callers_stream() {
    const core::Program program = tests::small_program();
    const std::size_t size = program.instructions.size();
    auto [streams, device] = record(program);
    for (std::size_t step = 0; step < 2; ++step) {
        streams.run([&](std::size_t i) { device->queue(step * size + i); });
        EXPECT(device->entered() == 0);
        EXPECT(device->seen_by_caller().size() == (step + 1) * size);
    }
    for (std::size_t i = 0; i < size; ++i) {  // all of the first step comes before any of the second
        const Ended& started = device->started[size + i];
        EXPECT(std::distance(started.begin(), started.lower_bound(size)) ==
               static_cast<std::ptrdiff_t>(size));
    }
}

void a_step_in_parts_is_queued_in_the_same_order() {
    const core::Program program = tests::small_program();
    const core::HappensBefore before(program.instructions);
    const std::size_t size = program.instructions.size();
    auto [streams, device] = record(program);
    for (const std::size_t end : {std::size_t{7}, size / 2, size / 2, size}) {
        streams.run([&](std::size_t i) { device->queue(i); }, end);
        EXPECT(streams.next() == end % size);
        EXPECT(device->entered() == 0 && device->seen_by_caller().size() == end);
    }
    for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t earlier = 0; earlier < i; ++earlier) {
            EXPECT(device->started[i].contains(earlier) || !before(earlier, i));
        }
    }
}

void a_failed_step_gives_the_callers_stream_back_and_is_the_last() {
    auto [streams, device] = record(tests::small_program());
    const auto run = [&] {
        streams.run([](std::size_t i) {
            if (i == 20) throw std::runtime_error("boom");
        });
    };
    EXPECT(tests::message_of<std::runtime_error>(run) == "boom");
    EXPECT(device->entered() == 0);
    EXPECT(tests::message_of<ie::Error>(run).starts_with("an earlier step failed"));
}

void an_order_that_can_not_be_queued_is_refused() {
    const auto make = [] { Streams({0, 1}, {{1}, {}}, std::make_unique<RecordingDevice>()); };
    EXPECT(tests::message_of<ie::Error>(make) == "instruction 0 waits for 1, which is queued later");
}

// With what streams wait for besides the Program.
core::Program with_waits(core::Program program, const Releases& releases) {
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        auto& after = program.instructions[i].after;
        after.insert(after.end(), releases.waits[i].begin(), releases.waits[i].end());
    }
    return program;
}

// Everything that is freed goes back once, in its own lane, and after all that ever used it.
void check_releases(const core::Program& program, const Releases& releases) {
    const std::size_t size = program.instructions.size();
    const core::HappensBefore before(with_waits(program, releases).instructions);
    std::map<std::string, std::size_t> home;
    std::map<std::string, std::vector<std::size_t>> users;
    std::size_t num_freed = 0, num_released = releases.names[size].size();
    for (std::size_t i = 0; i < size; ++i) {
        const core::Instruction& instruction = program.instructions[i];
        for (const std::string& name : releases.names[i]) {
            ++num_released;
            EXPECT(home.at(name) == lane_of(instruction));
            for (const std::size_t user : users[name]) EXPECT(before(user, i));
            users.erase(name);
            home.erase(name);
        }
        if (instruction.kind == core::Kind::kFree) {
            num_freed += instruction.writes.size();
            continue;
        }
        for (const std::string& name : instruction.writes) home.try_emplace(name, lane_of(instruction));
        for (const auto* names : {&instruction.reads, &instruction.writes}) {
            for (const std::string& name : *names) users[name].push_back(i);
        }
    }
    EXPECT(num_freed > 0 && num_released == num_freed);
}

// Values have 8 bytes, so a window of 8 has room for one of the gradients that wait for the host lane.
core::Program windowed_program(const std::string& levels, const std::string& mode,
                               std::int64_t window_bytes) {
    const core::Program header = tests::small_header(levels, mode, window_bytes);
    return core::schedule(header, tests::small_costs(header), true);
}

const std::string kWhole = "level R0 size=4 stride=1 link=near\n";
const std::string kSharded = "level P0 size=4 stride=1 link=near\n";

void memory_goes_back_where_its_own_stream_has_come_past_all_users() {
    for (const core::Program& program : programs()) {
        const Releases releases = runtime::releases_on_streams(program);
        check_releases(program, releases);
        for (const auto& waits : releases.waits) EXPECT(waits.empty());  // the Program has no window
    }
    for (const core::Program& program :
         {windowed_program(kWhole, "fast", 8), windowed_program(kSharded, "ordered", 128)}) {
        check_releases(program, runtime::releases_on_streams(program));
    }
}

void on_threads_memory_goes_back_where_it_is_freed() {
    const core::Program program = tests::small_program();
    const Releases releases = runtime::releases_on_threads(program);
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        const bool frees = program.instructions[i].kind == core::Kind::kFree;
        EXPECT(releases.names[i] == (frees ? program.instructions[i].writes : core::Names{}));
    }
    EXPECT(releases.names.back().empty());
}

// What is freed in another lane than its own, and has not gone back when its lane queues the next
// instruction.
std::int64_t most_bytes_kept(const core::Program& program, const Releases& releases, std::size_t lane) {
    std::map<std::string, std::size_t> home;
    std::map<std::string, std::int64_t> kept;
    std::int64_t most = 0;
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        const core::Instruction& instruction = program.instructions[i];
        for (const std::string& name : instruction.writes) {
            if (instruction.kind != core::Kind::kFree) home.try_emplace(name, lane_of(instruction));
            if (instruction.kind == core::Kind::kFree && home.at(name) == lane) kept[name] = 8;
        }
        for (const std::string& name : releases.names[i]) kept.erase(name);
        std::int64_t bytes = 0;
        for (const auto& [name, size] : kept) bytes += size;
        if (lane_of(instruction) == lane) most = std::max(most, bytes);
    }
    return most;
}

// Whole gradients are added up by the host lane, and the compute lane waits for it nowhere in the step.
void a_home_waits_for_users_when_more_than_a_window_has_been_freed() {
    const auto compute = static_cast<std::size_t>(core::Lane::kCompute);
    const core::Program free_running = windowed_program(kWhole, "fast", 0);
    EXPECT(most_bytes_kept(free_running, runtime::releases_on_streams(free_running), compute) > 8);
    const core::Program bounded = windowed_program(kWhole, "fast", 8);
    const Releases releases = runtime::releases_on_streams(bounded);
    EXPECT(most_bytes_kept(bounded, releases, compute) == 8);
    for (std::size_t i = 0; i < bounded.instructions.size(); ++i) {
        for (const std::size_t user : releases.waits[i]) {
            EXPECT(user < i && lane_of(bounded.instructions[i]) == compute &&
                   lane_of(bounded.instructions[user]) != compute);
        }
    }
}

// The Program's window of gathered parameters needs no such waits: queueing ahead does not widen it.
void the_window_of_parameters_holds_on_streams_too() {
    const core::Program program = windowed_program(kSharded, "fast", 128);
    const Releases releases = runtime::releases_on_streams(program);
    std::map<std::string, std::int64_t> bytes;
    for (const core::Buffer& buffer : program.buffers) bytes[buffer.name] = buffer.bytes;
    std::set<std::string> gathered;
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        for (const std::string& name : releases.names[i]) gathered.erase(name);
        if (program.instructions[i].kind == core::Kind::kGather) {
            gathered.insert(program.instructions[i].writes[0]);
        }
        std::int64_t alive = 0;
        for (const std::string& name : gathered) alive += bytes.at(name);
        EXPECT(alive <= program.window_bytes);
    }
}

}  // namespace

int main() {
    streams_are_ordered_as_the_program_says_and_not_further();
    a_step_is_work_on_the_callers_stream();
    a_step_in_parts_is_queued_in_the_same_order();
    a_failed_step_gives_the_callers_stream_back_and_is_the_last();
    an_order_that_can_not_be_queued_is_refused();
    memory_goes_back_where_its_own_stream_has_come_past_all_users();
    on_threads_memory_goes_back_where_it_is_freed();
    a_home_waits_for_users_when_more_than_a_window_has_been_freed();
    the_window_of_parameters_holds_on_streams_too();
    return tests::failures != 0;
}

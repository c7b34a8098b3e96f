#include "core/faults.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"

namespace ie::core {
namespace {

constexpr std::string_view kProcess = "kill stop exit delay raise";
constexpr std::string_view kSystemCall = "kill stop exit delay raise errno";

constexpr std::array kRows = {
    FaultPointRow{"data", "loop: before a step's micro-batches are taken", kProcess},
    FaultPointRow{"step", "loop: before a step", kProcess},
    FaultPointRow{"gather", "executor: before parameters are gathered", kProcess},
    FaultPointRow{"refresh", "executor: before updated parameters are sent", kProcess},
    FaultPointRow{"compute", "executor: before a region runs, forward or backward", kProcess},
    FaultPointRow{"pack", "executor: before gradients are put into their bucket", kProcess},
    FaultPointRow{"reduce", "executor: before a bucket's gradients are sent", kProcess},
    FaultPointRow{"accumulate", "executor: before a micro-batch is added", kProcess},
    FaultPointRow{"norm", "executor: before squares or totals are added", kProcess},
    FaultPointRow{"update", "executor: before a bucket is updated; others may be already", kProcess},
    FaultPointRow{"free", "executor: before buffers are let go", kProcess},
    FaultPointRow{"gradient", "executor: a bucket's gradients of one micro-batch on one rank", "nan flip"},
    FaultPointRow{"message", "transfers: what a rank has received", "flip"},
    FaultPointRow{"weights", "executor: parameters that a region is about to read", "flip"},
    FaultPointRow{"evaluate", "loop: before a validation", kProcess},
    FaultPointRow{"load", "checkpoint: before a file is read", kSystemCall},
    FaultPointRow{"create", "checkpoint: before a file is made", kSystemCall},
    FaultPointRow{"write", "checkpoint: before bytes are written", "kill stop exit delay raise errno short"},
    FaultPointRow{"sync", "checkpoint: before a file or folder is synced", kSystemCall},
    FaultPointRow{"publish", "checkpoint: before a draft is renamed", kSystemCall},
    FaultPointRow{"remove", "checkpoint: before an older one is deleted", kSystemCall},
};
constexpr std::array<std::string_view, 9> kActions = {"kill", "stop", "exit",  "delay", "raise",
                                                      "nan",  "flip", "short", "errno"};

struct Spec {
    std::string text;
    FaultPoint point;
    std::int64_t hit = 0, step = 0;  // 0: not by this
    double probability = 0;
    Fault fault{};
};

struct Plan {
    std::int64_t seed, rank, step = 0;
    std::vector<Spec> specs;
    std::array<std::int64_t, kRows.size()> hits{};
    std::string log;
    std::mutex mutex;  // lanes and the checkpoint's thread pass points too
};

Plan plan{};

std::vector<std::string_view> split(std::string_view text, char at) {
    std::vector<std::string_view> parts;
    for (std::size_t end; (end = text.find(at)) != text.npos; text.remove_prefix(end + 1))
        parts.push_back(text.substr(0, end));
    parts.push_back(text);
    return parts;
}

template <typename Number>
Number number(std::string_view text, std::string_view spec) {
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    IE_CHECK(error == std::errc() && end == text.data() + text.size(), "fault '", spec, "': '", text,
             "' is no number");
    return value;
}

bool is_among(std::string_view word, std::string_view words) {
    return std::ranges::any_of(split(words, ' '), [&](std::string_view each) { return each == word; });
}

// point@rank:when:action; nothing where it is another rank's.
std::optional<Spec> parse(std::string_view text, std::int64_t rank) {
    const auto parts = split(text, ':');
    const auto at = split(parts[0], '@');
    IE_CHECK(parts.size() == 3 && at.size() == 2, "fault '", text, "' is not POINT@RANK:WHEN:ACTION");
    const auto when = split(parts[1], '='), action = split(parts[2], '=');
    Spec spec{.text = std::string(text), .point = fault_point(at[0])};
    const FaultPointRow& row = kRows[static_cast<std::size_t>(spec.point)];
    IE_CHECK(is_among(action[0], row.actions), "fault '", text, "': ", row.name, " knows ", row.actions);
    spec.fault.action = static_cast<FaultAction>(std::ranges::find(kActions, action[0]) - kActions.begin());
    spec.fault.number = action.size() > 1 ? number<std::int64_t>(action[1], text) : 0;
    IE_CHECK(when.size() == 2, "fault '", text, "': when is hit=N, step=N or p=X");
    if (when[0] == "hit") spec.hit = number<std::int64_t>(when[1], text);
    if (when[0] == "step") spec.step = number<std::int64_t>(when[1], text);
    if (when[0] == "p") spec.probability = number<double>(when[1], text);
    IE_CHECK(spec.hit > 0 || spec.step > 0 || spec.probability > 0, "fault '", text,
             "': when is hit=N, step=N or p=X");
    if (number<std::int64_t>(at[1], text) != rank) return {};
    return spec;
}

// In [0, 1): splitmix64 of all that makes a passing of a point unique.
double draw(FaultPoint point, std::int64_t hit) {
    std::uint64_t state = 0;
    for (const std::int64_t part : {plan.seed, plan.rank, static_cast<std::int64_t>(point), hit}) {
        state = (state ^ static_cast<std::uint64_t>(part)) + 0x9E3779B97F4A7C15u;
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
        state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
        state ^= state >> 31;
    }
    return static_cast<double>(state >> 11) * 0x1p-53;
}

bool is_due(const Spec& spec, std::int64_t hit) {
    return spec.hit == hit || (spec.step > 0 && spec.step == plan.step) ||
           draw(spec.point, hit) < spec.probability;
}

// By one write, so that the line is there even when the process ends in the next instant.
void log_line(const std::string& text) {
    const int file = open(plan.log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const std::string line = text + "\n";
    IE_CHECK(file >= 0 && write(file, line.data(), line.size()) == std::ssize(line), "fault log ", plan.log,
             " can't be written");
    close(file);
}

// What needs nobody's help is done; the rest is the caller's.
std::optional<Fault> carry_out(const Spec& spec) {
    switch (spec.fault.action) {
        case FaultAction::kKill:
            raise(SIGKILL);
            return {};
        case FaultAction::kStop:
            raise(SIGSTOP);
            return {};
        case FaultAction::kExit:
            _exit(static_cast<int>(spec.fault.number));
        case FaultAction::kDelay:
            std::this_thread::sleep_for(std::chrono::milliseconds(spec.fault.number));
            return {};
        case FaultAction::kRaise:
            fail("a fault on purpose: ", spec.text);
        default:
            return spec.fault;
    }
}

}  // namespace

std::span<const FaultPointRow> fault_points() {
    return kRows;
}

std::string_view name_of(FaultAction action) {
    return kActions[static_cast<std::size_t>(action)];
}

FaultPoint fault_point(std::string_view name) {
    const auto row = std::ranges::find(kRows, name, &FaultPointRow::name);
    IE_CHECK(row != kRows.end(), "there is no fault point '", name, "'");
    return static_cast<FaultPoint>(row - kRows.begin());
}

void arm_faults(std::string_view text, std::int64_t seed, std::int64_t rank, const std::string& log) {
    std::vector<std::string> done;
    std::ifstream file(log);
    for (std::string line; std::getline(file, line);) done.push_back(line);
    const std::lock_guard lock(plan.mutex);
    plan.seed = seed, plan.rank = rank, plan.step = 0, plan.log = log;
    plan.hits.fill(0);
    plan.specs.clear();
    for (const std::string_view each : split(text, ';')) {
        auto spec = parse(each, rank);
        if (spec && std::ranges::find(done, spec->text) == done.end()) plan.specs.push_back(std::move(*spec));
    }
    detail::armed = true;
}

void disarm_faults() {
    detail::armed = false;
}

void faults_in_step(std::int64_t step) {
    const std::lock_guard lock(plan.mutex);
    plan.step = step;
}

std::optional<Fault> detail::pass(FaultPoint point) {
    std::optional<Spec> found;
    {
        const std::lock_guard lock(plan.mutex);
        const std::int64_t hit = ++plan.hits[static_cast<std::size_t>(point)];
        const auto due = std::ranges::find_if(
            plan.specs, [&](const Spec& spec) { return spec.point == point && is_due(spec, hit); });
        if (due == plan.specs.end()) return {};
        found = *due;
        plan.specs.erase(due);
        log_line(found->text);
    }
    return carry_out(*found);
}

}  // namespace ie::core

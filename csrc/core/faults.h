// Faults on purpose, for tests: named points at which a plan lets something go wrong. Points are in the
// binary that is shipped, so what is tested is what is used; disarmed, passing one is a relaxed load.
//
//     POINT@RANK:WHEN:ACTION[=NUMBER] ; ...
//
//     WHEN     hit=N   the N-th time that the rank passes the point, from 1
//              step=N  the first time in step N, from 1
//              p=X     each time with this probability: a hash of (seed, rank, point, hit), so a seed is a
//              run
//     ACTION   kill stop exit=CODE delay=MS raise: done here;
//              nan flip short errno=NUMBER: handed to who passes the point, as only they can do it
//
// Nothing depends on time. A fault happens once in the life of a run: its text is appended to a log before it
// does, and one that the log already holds is not armed again, so that a run that comes back can go on.
//
// The state is global on purpose: a point is anywhere. Every shared library has its own and is armed by
// itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ie::core {

// In the order of kFaultPoints. The instructions of a step are in the order of core::Kind.
enum class FaultPoint {
    kData,
    kStep,
    kGather,
    kRefresh,
    kCompute,
    kPack,
    kReduce,
    kAccumulate,
    kNorm,
    kUpdate,
    kFree,
    kGradient,
    kMessage,
    kWeights,
    kEvaluate,
    kLoad,
    kCreate,
    kWrite,
    kSync,
    kPublish,
    kRemove,
};

enum class FaultAction { kKill, kStop, kExit, kDelay, kRaise, kNan, kFlip, kShort, kErrno };

struct FaultPointRow {
    std::string_view name;
    std::string_view where;
    std::string_view actions;  // what makes sense there
};

std::span<const FaultPointRow> fault_points();

// What is left to do for who passes the point.
struct Fault {
    FaultAction action;
    std::int64_t number;
};

// Throws ie::Error where the plan can't be read. `log` is a file, made where it isn't there.
void arm_faults(std::string_view plan, std::int64_t seed, std::int64_t rank, const std::string& log);
void disarm_faults();

// The step that is about to begin, from 1.
void faults_in_step(std::int64_t step);

namespace detail {
inline std::atomic<bool> armed = false;
std::optional<Fault> pass(FaultPoint point);
}  // namespace detail

// Does what the plan says, or nothing. Throws ie::Error for `raise`.
inline std::optional<Fault> fault(FaultPoint point) {
    if (!detail::armed.load(std::memory_order_relaxed)) [[likely]]
        return {};
    return detail::pass(point);
}

std::string_view name_of(FaultAction action);
FaultPoint fault_point(std::string_view name);  // throws ie::Error

}  // namespace ie::core

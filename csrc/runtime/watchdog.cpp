#include "runtime/watchdog.h"

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <sstream>

namespace ie::runtime {
namespace {

constexpr double kStepsOfPatience = 5;
constexpr double kFirstStep_s = 600;  // nothing is known yet of how long a step takes
constexpr double kOwnStop_s = 1;      // between two looks: this process was stopped

const PhaseRow& row(Phase phase) {
    return kPhases[static_cast<std::size_t>(phase)];
}

// A limit of the rank's phase; 0 is none.
double limit_s(const Sight& rank, double PhaseRow::* column) {
    const double limit = row(rank.phase).*column;
    if (limit == 0 || !row(rank.phase).strict) return limit;
    return rank.longest_step_s == 0 ? std::max(limit, kFirstStep_s)
                                    : std::max(limit, kStepsOfPatience * rank.longest_step_s);
}

bool exceeds(double seconds, double limit) {
    return limit > 0 && seconds > limit;
}

// A rank that is ending may leave at any time.
bool is_there(const Sight& rank) {
    return rank.phase != Phase::kAbsent && rank.phase != Phase::kEnd && rank.phase != Phase::kGone;
}

// The rank that all others wait for: behind them by whole steps, or by instructions of the same one. Outside
// of a step a rank has done all of the step that it did last.
int last_of(const std::vector<Sight>& ranks) {
    const auto place = [](const Sight& rank) {
        return std::pair(rank.step, rank.phase == Phase::kStep ? rank.at : INT64_MAX);
    };
    int last = -1;
    bool is_alone = false;
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        if (!is_there(ranks[r])) continue;
        if (last < 0 || place(ranks[r]) < place(ranks[last])) {
            last = r;
            is_alone = true;
        } else if (place(ranks[r]) == place(ranks[last])) {
            is_alone = false;
        }
    }
    return is_alone ? last : -1;
}

}  // namespace

std::string_view name_of(Cause cause) {
    constexpr std::string_view kNames[] = {"", "lost", "silent", "gil", "still"};
    return kNames[static_cast<std::size_t>(cause)];
}

Verdict judge(const std::vector<Sight>& ranks) {
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        if (is_there(ranks[r]) && ranks[r].silent_s > kSilent_s) return {Cause::kSilent, r};
    }
    for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
        if (exceeds(ranks[r].gil_s, limit_s(ranks[r], &PhaseRow::gil_s))) return {Cause::kGil, r};
    }
    const int last = last_of(ranks);
    if (last >= 0 && exceeds(ranks[last].still_s, limit_s(ranks[last], &PhaseRow::still_s)))
        return {Cause::kStill, last};
    return {};
}

std::string describe(const Verdict& verdict, const std::vector<Sight>& ranks) {
    const Sight& rank = ranks.at(static_cast<std::size_t>(verdict.culprit));
    std::ostringstream text;
    text << std::fixed << std::setprecision(1) << "rank " << verdict.culprit;
    if (verdict.cause == Cause::kLost) text << " has ended";
    if (verdict.cause == Cause::kSilent)
        text << " has been silent for " << rank.silent_s << " s: stopped, or cut off";
    if (verdict.cause == Cause::kGil)
        text << " does not run Python: a thread of it has held the GIL for " << rank.gil_s << " s";
    if (verdict.cause == Cause::kStill)
        text << " has stood still for " << rank.still_s << " s, and the others wait for it";
    text << " (" << row(rank.phase).name << ", step " << rank.step;
    if (rank.phase == Phase::kStep) text << ", instruction " << rank.at;
    text << ")";
    return text.str();
}

Observer::Observer(const Board& board) : board_(board), clocks_(static_cast<std::size_t>(board.world())) {}

double Observer::Seen::age_s(std::int64_t now_value, double now_s) {
    if (now_value != value) *this = {now_value, now_s};
    return now_s - since_s;
}

std::vector<Sight> Observer::look(double now_s) {
    if (now_s - last_look_s_ > kOwnStop_s) {
        for (Clocks& clocks : clocks_)
            clocks.beats.since_s = clocks.gil_beats.since_s = clocks.moves.since_s = now_s;
    }
    last_look_s_ = now_s;
    std::vector<Sight> ranks;
    for (int r = 0; r < board_.world(); ++r) {
        const Slot& slot = board_.slot(r);
        Clocks& clocks = clocks_[static_cast<std::size_t>(r)];
        ranks.push_back({
            .phase = static_cast<Phase>(slot.phase.load()),
            .step = slot.step,
            .at = slot.at(),
            .longest_step_s = static_cast<double>(slot.longest_step_ns) * 1e-9,
            .silent_s = clocks.beats.age_s(slot.beats, now_s),
            .gil_s = clocks.gil_beats.age_s(slot.gil_beats, now_s),
            .still_s = clocks.moves.age_s(slot.moves, now_s),
        });
    }
    return ranks;
}

Watchdog::Watchdog(std::shared_ptr<Board> board, int rank, Act act)
    : board_(std::move(board)),
      rank_(rank),
      act_(std::move(act)),
      thread_([this](std::stop_token stop) { watch(stop); }) {}

Watchdog::~Watchdog() = default;

void Watchdog::watch(const std::stop_token& stop) {
    Observer observer(*board_);
    Slot& own = board_->slot(rank_);
    while (!stop.stop_requested()) {
        own.beats.fetch_add(1);
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        const std::vector<Sight> ranks = observer.look(std::chrono::duration<double>(now).count());
        const auto lost = static_cast<int>(board_->lost().load());
        const Verdict verdict =
            lost > 0 && lost - 1 != rank_ ? Verdict{Cause::kLost, lost - 1} : judge(ranks);
        if (verdict.cause != Cause::kNone) {
            own.culprit = verdict.culprit;
            own.verdict = static_cast<std::int64_t>(verdict.cause);
            return act_(verdict, describe(verdict, ranks));
        }
        std::this_thread::sleep_for(std::chrono::duration<double>(kTick_s));
    }
}

}  // namespace ie::runtime

// The watchdog: a thread of each rank that shows that the rank is alive, looks whether all others are, and
// names the one that is not. No Python and no torch, so it works while a thread holds the GIL.
//
//     Watchdog watchdog(board, rank, act);     until it is destroyed; act is called once, in its thread
//
// Whom the parent found ended is lost, for all others.
//
// It judges by three clocks of each rank. A process that is stopped or cut off is silent: its watchdog's
// beats don't come. A thread that keeps the GIL lets the other Python threads of its process starve: their
// beats don't come. And a rank that took another path stands still: it is where others wait for it, and its
// instructions don't end. Who only waits for another stands still too, but further on.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/board.h"

namespace ie::runtime {

inline constexpr double kSilent_s = 2.3;
inline constexpr double kTick_s = 0.05;

// One rank as another sees it: where it is, and for how long each of its clocks has not moved.
struct Sight {
    Phase phase = Phase::kStep;
    std::int64_t step = 0, at = 0;  // at: the first instruction that has not ended
    double longest_step_s = 0;
    double silent_s = 0, gil_s = 0, still_s = 0;
};

enum class Cause : std::int64_t { kNone, kLost, kSilent, kGil, kStill };
std::string_view name_of(Cause cause);  // "silent"; empty: none

struct Verdict {
    Cause cause = Cause::kNone;
    int culprit = -1;
};

// The first of these that is true: a rank is silent; a rank's GIL is held; the rank that is behind all others
// stands still. Where several are equally far behind nobody can be named.
Verdict judge(const std::vector<Sight>& ranks);

// One line for people.
std::string describe(const Verdict& verdict, const std::vector<Sight>& ranks);

// What one process sees of all ranks, tick by tick.
class Observer {
  public:
    explicit Observer(const Board& board);

    // `now_s` is of any clock that rises. Where much time has passed since the last look, this process was
    // stopped itself, and starts to count anew.
    std::vector<Sight> look(double now_s);

  private:
    struct Seen {
        std::int64_t value = 0;
        double since_s = 0;
        double age_s(std::int64_t now_value, double now_s);
    };
    struct Clocks {
        Seen beats, gil_beats, moves;
    };

    const Board& board_;
    std::vector<Clocks> clocks_;
    double last_look_s_ = 0;
};

class Watchdog {
  public:
    using Act = std::function<void(const Verdict& verdict, const std::string& text)>;

    Watchdog(std::shared_ptr<Board> board, int rank, Act act);
    ~Watchdog();
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

  private:
    void watch(const std::stop_token& stop);

    std::shared_ptr<Board> board_;
    int rank_;
    Act act_;
    std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace ie::runtime

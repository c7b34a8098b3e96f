// The board: what every rank of a host is doing right now, in memory that its ranks and their parent share.
//
// A rank writes its own slot, from any thread, without locks; anybody reads any slot at any time, also that
// of a rank that was killed, for the memory outlives it. Counters only rise: whoever waits for one to move
// measures by a clock of its own, so no clocks are compared. Zero bytes are a board on which nobody is yet.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/program.h"

namespace ie::runtime {

// In the order of kPhases.
enum class Phase : std::int64_t {
    kAbsent,
    kStart,
    kCompile,
    kLoad,
    kLoop,
    kStep,
    kSave,
    kEvaluate,
    kEnd,
    kGone
};

// How long a rank for which others wait may stand still, and how long a thread of its may hold the GIL,
// before it is called hung; 0: as long as it likes. Phases in which a rank does what all do at the same time,
// step after step, are `strict`: their limits grow with the longest step that the rank has done.
struct PhaseRow {
    std::string_view name;
    double still_s, gil_s;
    bool strict;
};
inline constexpr std::array<PhaseRow, 10> kPhases = {{
    {"absent", 0, 0, false},
    {"start", 0, 0, false},  // rank 0 may tokenize a corpus meanwhile
    {"compile", 3600, 0, false},
    {"load", 1800, 0, false},
    {"loop", 300, 2.5, true},  // records, and waiting for data: a file system may hang for a while
    {"step", 2.5, 2.5, true},
    {"save", 1800, 0, false},
    {"evaluate", 1800, 0, false},
    {"end", 0, 0, false},  // some ranks have more to do than others, who leave
    {"gone", 0, 0, false},
}};

// Throws ie::Error for a name that is in no row.
Phase phase_named(std::string_view name);

// A number in shared memory.
using Word = std::atomic<std::int64_t>;
static_assert(Word::is_always_lock_free, "processes can't share a lock");

// What an instruction of the Program was, when it began.
struct Begun {
    std::int64_t step, instruction, time_ns;  // of the monotonic clock, which the processes of a host share
};

struct Slot {
    static constexpr std::size_t kNumBegun = 64;

    Word beats, gil_beats;  // of a thread without Python, and of one that needs the GIL
    Word moves;             // anything that the rank did
    Word phase, phase_began_ns;
    Word step, longest_step_ns;
    Word num_ended;                                   // instructions of this step
    std::array<Word, core::kNumLanes> running;        // number + 1 of each lane's instruction, or 0
    Word verdict, culprit;                            // what this rank's watchdog found: a Cause, and a rank
    Word num_begun;                                   // of all steps
    std::array<std::array<Word, 3>, kNumBegun> last;  // a ring of Begun

    // What another host is told of a rank.
    using State = std::array<std::int64_t, 7 + core::kNumLanes>;
    State state() const;
    void show(const State& state);

    void enter(Phase to);
    void begin_step(std::int64_t number);
    void begin(core::Lane lane, std::int64_t instruction);
    void end(core::Lane lane);

    std::int64_t at() const;           // the first instruction of the step that has not ended, about
    std::vector<Begun> begun() const;  // the last ones, oldest first
};

class Board {
  public:
    // Shares the file `fd`, which gets the length that it needs; -1: nobody else sees this board.
    Board(int fd, int world);
    ~Board();
    Board(const Board&) = delete;
    Board& operator=(const Board&) = delete;

    int world() const { return world_; }
    Slot& slot(int rank) const;
    Word& lost() const { return *lost_; }  // a rank + 1 that their parent found ended; 0: none

  private:
    int world_;
    std::size_t num_bytes_;
    void* memory_;
    Word* lost_;
    Slot* slots_;
};

}  // namespace ie::runtime

#include "runtime/board.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/error.h"

namespace ie::runtime {
namespace {

constexpr std::size_t kHeaderBytes = 64;
constexpr auto kRelaxed = std::memory_order_relaxed;

// The words of Slot::State; std::array<Word, n> has no copy, so they are named once, here.
template <typename AnySlot, typename Each>
void each_word(AnySlot& slot, Each each) {
    std::size_t i = 0;
    for (auto* word : {&slot.beats, &slot.gil_beats, &slot.moves, &slot.phase, &slot.step,
                       &slot.longest_step_ns, &slot.num_ended})
        each(*word, i++);
    for (auto& word : slot.running) each(word, i++);
}

std::int64_t now_ns() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Phase phase_named(std::string_view name) {
    const auto row = std::ranges::find(kPhases, name, &PhaseRow::name);
    IE_CHECK(row != kPhases.end(), "no phase is called '", name, "'");
    return static_cast<Phase>(row - kPhases.begin());
}

Slot::State Slot::state() const {
    State state;
    each_word(*this, [&](const Word& word, std::size_t i) { state[i] = word.load(kRelaxed); });
    return state;
}

void Slot::show(const State& state) {
    each_word(*this, [&](Word& word, std::size_t i) { word.store(state[i], kRelaxed); });
}

void Slot::enter(Phase to) {
    const std::int64_t now = now_ns(), lasted = now - phase_began_ns.exchange(now, kRelaxed);
    const auto from = static_cast<Phase>(phase.exchange(static_cast<std::int64_t>(to), kRelaxed));
    if (from == Phase::kStep && lasted > longest_step_ns) longest_step_ns = lasted;
    moves.fetch_add(1, kRelaxed);
}

void Slot::begin_step(std::int64_t number) {
    step.store(number, kRelaxed);
    num_ended.store(0, kRelaxed);
    enter(Phase::kStep);
}

void Slot::begin(core::Lane lane, std::int64_t instruction) {
    running[static_cast<std::size_t>(lane)].store(instruction + 1, kRelaxed);
    auto& entry = last[static_cast<std::size_t>(num_begun.fetch_add(1, kRelaxed)) % kNumBegun];
    entry[0].store(step.load(kRelaxed), kRelaxed);
    entry[1].store(instruction, kRelaxed);
    entry[2].store(now_ns(), kRelaxed);
    moves.fetch_add(1, kRelaxed);
}

void Slot::end(core::Lane lane) {
    running[static_cast<std::size_t>(lane)].store(0, kRelaxed);
    num_ended.fetch_add(1, kRelaxed);
    moves.fetch_add(1, kRelaxed);
}

std::int64_t Slot::at() const {
    std::int64_t first = 0;
    for (const Word& lane : running) {
        const std::int64_t number = lane.load(kRelaxed);
        if (number > 0 && (first == 0 || number < first)) first = number;
    }
    return first > 0 ? first - 1 : num_ended.load(kRelaxed);
}

std::vector<Begun> Slot::begun() const {
    const std::int64_t end = num_begun.load(kRelaxed);
    std::vector<Begun> entries;
    for (std::int64_t i = std::max<std::int64_t>(0, end - static_cast<std::int64_t>(kNumBegun)); i < end;
         ++i) {
        const auto& entry = last[static_cast<std::size_t>(i) % kNumBegun];
        entries.push_back({entry[0].load(kRelaxed), entry[1].load(kRelaxed), entry[2].load(kRelaxed)});
    }
    return entries;
}

Board::Board(int fd, int world)
    : world_(world), num_bytes_(kHeaderBytes + sizeof(Slot) * static_cast<std::size_t>(world)) {
    const int flags = MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0);
    IE_CHECK(fd < 0 || ::ftruncate(fd, static_cast<off_t>(num_bytes_)) == 0, "the board of ", world,
             " ranks: ", std::strerror(errno));
    memory_ = ::mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, flags, fd, 0);
    IE_CHECK(memory_ != MAP_FAILED, "the board of ", world, " ranks: ", std::strerror(errno));
    lost_ = static_cast<Word*>(memory_);
    slots_ = reinterpret_cast<Slot*>(static_cast<char*>(memory_) + kHeaderBytes);
}

Board::~Board() {
    ::munmap(memory_, num_bytes_);
}

Slot& Board::slot(int rank) const {
    IE_CHECK(rank >= 0 && rank < world_, "rank ", rank, " is not one of ", world_);
    return slots_[rank];
}

}  // namespace ie::runtime

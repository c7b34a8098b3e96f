#include "runtime/releases.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "core/error.h"
#include "core/happens_before.h"

namespace ie::runtime {
namespace {

using core::Instruction;
using core::Kind;

class StreamReleases {
  public:
    explicit StreamReleases(const core::Program& program)
        : program_(program), before_(program.instructions), releases_(program.instructions.size() + 1) {}

    Releases list() {
        for (std::int64_t i = 0; i < std::ssize(program_.instructions); ++i) {
            const Instruction& instruction = program_.instructions[i];
            if (instruction.kind == Kind::kFree) retire(instruction.writes);
            release(i);
            if (instruction.kind != Kind::kFree) use(instruction, i);
        }
        for (const auto& retired : retired_) {
            for (const Life& life : retired) releases_.back().push_back(life.name);
        }
        return std::move(releases_);
    }

  private:
    // From a first writer, whose lane allocates, to a `free`.
    struct Life {
        std::string name;
        std::size_t home;
        std::vector<std::int64_t> users{};
    };

    static std::size_t lane(const Instruction& instruction) {
        return static_cast<std::size_t>(instruction.lane);
    }

    void retire(const core::Names& names) {
        for (const std::string& name : names) {
            const auto life = alive_.find(name);
            if (life == alive_.end()) continue;
            retired_[life->second.home].push_back(std::move(life->second));
            alive_.erase(life);
        }
    }

    void release(std::int64_t i) {
        std::erase_if(retired_[lane(program_.instructions[i])], [&](const Life& life) {
            const bool is_past =
                std::ranges::all_of(life.users, [&](std::int64_t user) { return before_(user, i); });
            if (is_past) releases_[i].push_back(life.name);
            return is_past;
        });
    }

    void use(const Instruction& instruction, std::int64_t i) {
        for (const core::Names* names : {&instruction.writes, &instruction.reads}) {
            for (const std::string& name : *names) {
                const auto [life, is_born] = alive_.try_emplace(name, Life{name, lane(instruction)});
                if (is_born) check_is_gone(name, i);
                life->second.users.push_back(i);
            }
        }
    }

    void check_is_gone(const std::string& name, std::int64_t i) const {
        for (const auto& retired : retired_) {
            IE_CHECK(std::ranges::count(retired, name, &Life::name) == 0, "instruction ", i, " makes ", name,
                     " in another lane than the one before it");
        }
    }

    const core::Program& program_;
    core::HappensBefore before_;
    std::unordered_map<std::string, Life> alive_;
    std::array<std::vector<Life>, core::kNumLanes> retired_;  // by home: freed, not yet released
    Releases releases_;
};

}  // namespace

Releases releases_on_threads(const core::Program& program) {
    Releases releases;
    for (const Instruction& i : program.instructions) {
        releases.push_back(i.kind == Kind::kFree ? i.writes : core::Names{});
    }
    releases.emplace_back();
    return releases;
}

Releases releases_on_streams(const core::Program& program) {
    return StreamReleases(program).list();
}

}  // namespace ie::runtime

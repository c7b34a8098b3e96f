#include "runtime/releases.h"

#include <algorithm>
#include <array>
#include <ranges>
#include <unordered_map>

#include "core/error.h"
#include "core/happens_before.h"
#include "core/layout.h"

namespace ie::runtime {
namespace {

using core::Instruction;
using core::Kind;

std::unordered_map<std::string, std::int64_t> bytes_of(const core::Program& program) {
    std::unordered_map<std::string, std::int64_t> bytes;
    for (const core::Buffer& buffer : program.buffers) bytes[buffer.name] = buffer.bytes;
    for (std::int64_t m = 0; m < program.micro_batches; ++m) {
        for (const core::Value& value : program.values) {
            bytes[core::in_micro_batch(value.name, m)] = value.bytes;
        }
    }
    return bytes;
}

class StreamReleases {
  public:
    explicit StreamReleases(const core::Program& program)
        : program_(program), bytes_(bytes_of(program)), ended_(program.instructions.size()) {
        releases_.names.resize(program.instructions.size() + 1);
        releases_.waits.resize(program.instructions.size());
    }

    Releases list() {
        for (std::size_t i = 0; i < program_.instructions.size(); ++i) queue(program_.instructions[i], i);
        for (const Stream& stream : streams_) {
            for (const Life& life : stream.retired) releases_.names.back().push_back(life.name);
        }
        return std::move(releases_);
    }

  private:
    // From a first writer, whose lane allocates, to a `free`.
    struct Life {
        std::string name;
        std::size_t home;
        std::vector<std::size_t> users{};
    };
    struct Stream {
        core::Clock ended{};  // before what it queues next
        std::int64_t num_queued = 0;
        std::vector<Life> retired{};  // freed and not gone back, of this home; the oldest first
    };

    void queue(const Instruction& instruction, std::size_t i) {
        Stream& stream = streams_[static_cast<std::size_t>(instruction.lane)];
        for (const std::int64_t earlier : instruction.after) stream.ended.join(ended_[earlier]);
        const bool frees = instruction.kind == Kind::kFree;
        if (frees) retire(instruction.writes);
        release(stream, i);
        while (exceeds_window(stream)) {
            wait_for(stream, stream.retired.front(), i);
            release(stream, i);
        }
        if (!frees) use(instruction, i);
        places_.push_back({instruction.lane, stream.num_queued++});
        stream.ended.add(places_.back());
        ended_[i] = stream.ended;
    }

    void retire(const core::Names& names) {
        for (const std::string& name : names) {
            const auto life = alive_.find(name);
            if (life == alive_.end()) continue;
            streams_[life->second.home].retired.push_back(std::move(life->second));
            alive_.erase(life);
        }
    }

    void release(Stream& stream, std::size_t i) {
        std::erase_if(stream.retired, [&](const Life& life) {
            const bool is_past = std::ranges::all_of(
                life.users, [&](std::size_t user) { return stream.ended.covers(places_[user]); });
            if (is_past) releases_.names[i].push_back(life.name);
            return is_past;
        });
    }

    bool exceeds_window(const Stream& stream) const {
        std::int64_t bytes = 0;
        for (const Life& life : stream.retired) bytes += bytes_.at(life.name);
        return program_.window_bytes > 0 && bytes > program_.window_bytes;
    }

    void wait_for(Stream& stream, const Life& life, std::size_t i) {
        for (const std::size_t user : std::views::reverse(life.users)) {  // a later one may cover the others
            if (stream.ended.covers(places_[user])) continue;
            stream.ended.join(ended_[user]);
            releases_.waits[i].push_back(user);
        }
    }

    void use(const Instruction& instruction, std::size_t i) {
        for (const core::Names* names : {&instruction.writes, &instruction.reads}) {
            for (const std::string& name : *names) {
                const auto home = static_cast<std::size_t>(instruction.lane);
                const auto [life, is_born] = alive_.try_emplace(name, Life{name, home});
                if (is_born) check_is_gone(name, i);
                life->second.users.push_back(i);
            }
        }
    }

    void check_is_gone(const std::string& name, std::size_t i) const {
        for (const Stream& stream : streams_) {
            IE_CHECK(std::ranges::count(stream.retired, name, &Life::name) == 0, "instruction ", i, " makes ",
                     name, " in another lane than the one before it");
        }
    }

    const core::Program& program_;
    std::unordered_map<std::string, std::int64_t> bytes_;
    std::array<Stream, core::kNumLanes> streams_{};
    std::unordered_map<std::string, Life> alive_;
    std::vector<core::Place> places_;
    std::vector<core::Clock> ended_;  // what has ended when an instruction has
    Releases releases_;
};

}  // namespace

Releases releases_on_threads(const core::Program& program) {
    Releases releases;
    for (const Instruction& i : program.instructions) {
        releases.names.push_back(i.kind == Kind::kFree ? i.writes : core::Names{});
    }
    releases.names.emplace_back();
    releases.waits.resize(program.instructions.size());
    return releases;
}

Releases releases_on_streams(const core::Program& program) {
    return StreamReleases(program).list();
}

}  // namespace ie::runtime

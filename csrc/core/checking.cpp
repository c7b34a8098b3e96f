#include "core/checking.h"

#include <array>
#include <optional>
#include <sstream>
#include <unordered_map>

#include "core/data_flow.h"
#include "core/error.h"
#include "core/happens_before.h"
#include "core/layout.h"

namespace ie::core {
namespace {

using Problems = std::vector<std::string>;
constexpr std::int64_t kNone = -1;

template <typename... Parts>
std::string say(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return std::move(text).str();
}

Problems check_buffers(const Program& program, const Layout& layout) {
    const std::vector<Buffer> expected = layout.buffers();
    if (expected.size() != program.buffers.size()) {
        return {say("the header implies ", expected.size(), " buffers, found ", program.buffers.size())};
    }
    Problems problems;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const Buffer& found = program.buffers[i];
        if (found.name != expected[i].name || found.bytes != expected[i].bytes ||
            found.persistent != expected[i].persistent) {
            problems.push_back(say("buffer ", found.name, " of ", found.bytes, " bytes must be ",
                                   expected[i].name, " of ", expected[i].bytes, " bytes, ",
                                   expected[i].persistent ? "persistent" : "transient"));
        }
    }
    return problems;
}

std::string list(const Names& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ",") + name;
    return text.empty() ? "-" : text;
}

std::optional<std::string> check_operands(const Instruction& i, const Layout& layout) {
    try {
        const Operands expected = layout.operands(i);
        if (i.lane != layout.lane(i)) return say("belongs in lane ", name_of(layout.lane(i)));
        if (i.reads != expected.reads)
            return say("must read ", list(expected.reads), ", not ", list(i.reads));
        if (i.writes != expected.writes)
            return say("must write ", list(expected.writes), ", not ", list(i.writes));
        if (i.bytes != expected.bytes) return say("must send ", expected.bytes, " bytes, not ", i.bytes);
        return std::nullopt;
    } catch (const Error& error) {
        return error.what();
    }
}

Problems check_instructions(const Program& program, const Layout& layout) {
    Problems problems;
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
        const auto problem = check_operands(program.instructions[i], layout);
        if (problem) problems.push_back(say(i, ": ", name_of(program.instructions[i].kind), " ", *problem));
    }
    return problems;
}

// Since its last writer, who has read a buffer: the latest of each lane says it all.
struct Access {
    std::int64_t writer = kNone;
    std::array<std::int64_t, kNumLanes> readers{kNone, kNone, kNone, kNone, kNone, kNone};
};

class Races {
  public:
    Races(const Program& program, const HappensBefore& happens_before)
        : instructions_(program.instructions), happens_before_(happens_before) {}

    Problems list() {
        for (const std::int64_t i : happens_before_.order()) {
            const Instruction& instruction = instructions_[i];
            for (const std::string& name : instruction.reads) {
                Access& access = accesses_[name];
                expect_before(access.writer, i, name);
                access.readers[static_cast<std::size_t>(instruction.lane)] = i;
            }
            for (const std::string& name : instruction.writes) {
                Access& access = accesses_[name];
                expect_before(access.writer, i, name);
                for (const std::int64_t reader : access.readers) expect_before(reader, i, name);
                access = {.writer = i};
            }
        }
        return std::move(problems_);
    }

  private:
    void expect_before(std::int64_t first, std::int64_t second, const std::string& name) {
        if (first == kNone || first == second || happens_before_(first, second)) return;
        problems_.push_back(
            say(second, ": races with ", first, " for ", name, ": neither waits for the other"));
    }

    const std::vector<Instruction>& instructions_;
    const HappensBefore& happens_before_;
    std::unordered_map<std::string, Access> accesses_;
    Problems problems_;
};

struct Gathered {
    std::int64_t number;
    std::int64_t bytes;
    std::int64_t freed = kNone;
};

std::vector<Gathered> list_gathered(const Program& program, const Layout& layout,
                                    const std::vector<std::int64_t>& order) {
    std::vector<Gathered> gathered;
    std::unordered_map<std::string, std::size_t> latest;
    for (const std::int64_t i : order) {
        const Instruction& instruction = program.instructions[i];
        if (instruction.kind == Kind::kGather && instruction.reads != instruction.writes) {
            latest[instruction.writes[0]] = gathered.size();
            gathered.push_back({i, layout.numel(layout.bucket_of(instruction), 0) * program.param_bytes});
        } else if (instruction.kind == Kind::kFree) {
            for (const std::string& name : instruction.writes) {
                if (const auto found = latest.find(name); found != latest.end())
                    gathered[found->second].freed = i;
            }
        }
    }
    return gathered;
}

// Gathers share a lane: at the start of one, what the earlier ones hold is alive unless it has surely been
// freed.
Problems check_window(const Program& program, const Layout& layout, const HappensBefore& happens_before) {
    Problems problems;
    if (program.window_bytes == 0) return problems;
    const std::vector<Gathered> gathered = list_gathered(program, layout, happens_before.order());
    for (std::size_t last = 0; last < gathered.size(); ++last) {
        std::int64_t alive = gathered[last].bytes;
        for (std::size_t i = 0; i < last; ++i) {
            const auto& [number, bytes, freed] = gathered[i];
            if (freed == kNone || !happens_before(freed, gathered[last].number)) alive += bytes;
        }
        if (alive > program.window_bytes) {
            problems.push_back(
                say(gathered[last].number, ": up to ", alive,
                    " bytes of gathered parameters are alive, window_bytes=", program.window_bytes));
        }
    }
    return problems;
}

Problems check_behaviour(const Program& program, const Layout& layout) {
    const HappensBefore happens_before(program.instructions);
    Problems problems = Races(program, happens_before).list();
    if (problems.empty()) problems = follow_data(program, layout, happens_before.order());
    if (problems.empty()) problems = check_window(program, layout, happens_before);
    return problems;
}

}  // namespace

std::vector<std::string> check_program(const Program& program) {
    try {
        const Layout layout(program);
        Problems problems = check_buffers(program, layout);
        if (problems.empty()) problems = check_instructions(program, layout);
        if (problems.empty()) problems = check_behaviour(program, layout);
        return problems;
    } catch (const Error& error) {
        return {error.what()};
    }
}

}  // namespace ie::core

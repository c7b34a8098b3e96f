#include "core/data_flow.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace ie::core {
namespace {

// What an alive buffer holds, as a number:
//   param, pshard          along how many levels its current data is still cut; kUpdated after the update
//   grad, part, gsum, total  the last micro-batch it includes; kStale before the first
//   os                     0, or kUpdated
//   norm                   kStale, or 0 once it is this step's
//   values                 0
using Content = std::int64_t;
constexpr Content kUpdated = -1;
constexpr Content kStale = -2;

class DataFlow {
  public:
    DataFlow(const Program& program, const Layout& layout)
        : program_(program), layout_(layout), last_micro_batch_(program.micro_batches - 1) {
        for (const Buffer& buffer : program.buffers) {
            if (buffer.persistent) persistent_.insert(buffer.name);
        }
        for (const std::string& name : persistent_) {
            const bool is_state = name.starts_with("os[");
            const bool is_param = name.starts_with("param[") || name.starts_with("pshard[");
            alive_[name] = is_state ? 0 : is_param ? layout.shards() : kStale;
        }
        for (std::int64_t b = layout.num_trained(); b < std::ssize(program.buckets); ++b) {
            alive_[layout.held(b)] = layout.params();
        }
        admit_inputs();
    }

    std::vector<std::string> follow(const std::vector<std::int64_t>& order) {
        for (const std::int64_t i : order) {
            number_ = i;
            const Instruction& instruction = program_.instructions[i];
            instruction.kind == Kind::kFree ? free(instruction) : run(instruction);
        }
        check_end();
        return std::move(problems_);
    }

  private:
    // Values that no call writes come from the batch.
    void admit_inputs() {
        std::unordered_set<std::string> written;
        for (const Call& call : program_.calls) written.insert(call.writes.begin(), call.writes.end());
        for (const Value& value : program_.values) {
            if (written.contains(value.name)) continue;
            for (std::int64_t m = 0; m < program_.micro_batches; ++m) {
                const std::string name = in_micro_batch(value.name, m);
                persistent_.insert(name);
                alive_[name] = 0;
            }
        }
    }

    void free(const Instruction& instruction) {
        for (const std::string& name : instruction.writes) {
            if (persistent_.contains(name) || alive_.erase(name) == 0)
                report("frees ", name, ", which can't be freed");
        }
    }

    void run(const Instruction& instruction) {
        for (const std::string& name : instruction.reads) {
            if (!alive_.contains(name))
                return report("reads ", name, ", which does not exist yet or was freed");
        }
        for (const std::string& name : instruction.writes) {
            const bool in_place = std::ranges::count(instruction.reads, name) > 0;
            if (!in_place && alive_.contains(name) && !persistent_.contains(name)) {
                return report("writes ", name, ", which was not freed since it was written");
            }
        }
        const Content content = run_kind(instruction);
        for (const std::string& name : instruction.writes) alive_[name] = content;
    }

    // Expects what the kind needs to find, and says what it leaves in all that it writes.
    Content run_kind(const Instruction& i) {
        const bool is_in_micro_batch = i.micro_batch != kNoMicroBatch;
        switch (i.kind) {
            case Kind::kCompute:
                if (!ran_.insert(i.what + "@" + std::to_string(i.micro_batch)).second)
                    report("runs ", i.what, " again");
                for (const std::string& name : i.reads) {
                    if (name.starts_with("param[")) expect(name, 0, " whole and not yet updated");
                }
                return 0;
            case Kind::kGather:
            case Kind::kRefresh:
                expect(i.reads[0], layout_.level_of(i) + 1, " complete over the levels after its own");
                return layout_.level_of(i);
            case Kind::kPack:
                if (layout_.packs_into_sum() && i.micro_batch > 0)
                    expect_sum(i.reads.back(), i.micro_batch - 1);
                return i.micro_batch;
            case Kind::kReduce:
                expect(i.reads[0], is_in_micro_batch ? i.micro_batch : last_micro_batch_,
                       " of the same micro-batches");
                return is_in_micro_batch ? i.micro_batch : last_micro_batch_;
            case Kind::kAccumulate:
                expect(i.reads[0], i.micro_batch, " of the same micro-batch");
                expect_sums_before(i);
                return i.micro_batch;
            case Kind::kNorm:
                if (i.what != "all") expect(i.reads[0], last_micro_batch_, " with all micro-batches");
                return 0;
            case Kind::kUpdate:
                expect(i.reads[0], last_micro_batch_, " with all micro-batches");
                expect("norm", 0, " of this step");
                expect(i.reads[2], 0, " not yet updated");
                expect(i.reads[3], layout_.params(), " refreshed and not yet updated");
                return kUpdated;
            case Kind::kFree:
                break;
        }
        return kStale;
    }

    // What is added to a micro-batch: the sum of those before, or of the last 1, of the 2 before it, of 4 ...
    void expect_sums_before(const Instruction& accumulate) {
        std::int64_t last = accumulate.micro_batch - 1;
        for (std::size_t i = 1; i < accumulate.reads.size(); ++i) {
            expect_sum(accumulate.reads[i], last);
            last -= std::int64_t{1} << (i - 1);
        }
    }

    void expect_sum(const std::string& sum, std::int64_t last_micro_batch) {
        expect(sum, last_micro_batch, " with exactly the micro-batches before");
    }

    void expect(const std::string& name, Content content, const char* what) {
        if (alive_.at(name) != content) report("needs ", name, what);
    }

    void check_end() {
        std::vector<std::string> problems;
        for (const auto& [name, content] : alive_) {
            if (!persistent_.contains(name))
                problems.push_back("the step ends and " + name + " was never freed");
            if (name.starts_with("os[") && content != kUpdated) problems.push_back("no update of " + name);
        }
        std::ranges::sort(problems);  // alive_ has no order
        problems_.insert(problems_.end(), problems.begin(), problems.end());
        const std::size_t expected = program_.calls.size() * static_cast<std::size_t>(program_.micro_batches);
        if (ran_.size() != expected) {
            problems_.push_back(std::to_string(ran_.size()) + " calls run, " + std::to_string(expected) +
                                " must");
        }
    }

    void report(const std::string& before, const std::string& name, const std::string& after) {
        const std::string kind(name_of(program_.instructions[number_].kind));
        problems_.push_back(std::to_string(number_) + ": " + kind + " " + before + name + after);
    }

    const Program& program_;
    const Layout& layout_;
    const std::int64_t last_micro_batch_;
    std::unordered_set<std::string> persistent_;
    std::unordered_map<std::string, Content> alive_;
    std::unordered_set<std::string> ran_;
    std::int64_t number_ = 0;
    std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> follow_data(const Program& program, const Layout& layout,
                                     const std::vector<std::int64_t>& order) {
    return DataFlow(program, layout).follow(order);
}

}  // namespace ie::core

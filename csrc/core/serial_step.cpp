#include "core/serial_step.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace ie::core {
namespace {

using Indices = std::vector<std::int64_t>;

class SerialStep {
  public:
    SerialStep(const Program& program, const Layout& layout)
        : program_(program), layout_(layout), is_fresh_(program.buckets.size(), false) {}

    std::vector<Instruction> list() {
        for (std::int64_t m = 0; m < program_.micro_batches; ++m) micro_batch(m);
        for (std::int64_t b = 0; b < layout_.num_trained(); ++b) refresh(b);  // used by no call
        add(Kind::kNorm, "all", kNoMicroBatch, "all");
        for (const std::int64_t b : first_needed_) add(Kind::kUpdate, b);
        return std::move(instructions_);
    }

  private:
    void micro_batch(std::int64_t m) {
        const std::vector<Indices> complete = complete_after();
        for (std::size_t c = 0; c < program_.calls.size(); ++c) {
            const Call& call = program_.calls[c];
            for (const std::int64_t b : call.buckets) fetch(b, m);
            add(Kind::kCompute, call.name, m, "");
            if (!call.buckets.empty()) gathered_ = call.buckets;
            for (const std::int64_t b : complete[c]) reduce_gradient(b, m);
        }
    }

    // For each call, the buckets whose last gradient it writes; a bucket without gradients is complete at the
    // end.
    std::vector<Indices> complete_after() const {
        std::unordered_map<std::string, std::size_t> writer;
        for (std::size_t c = 0; c < program_.calls.size(); ++c) {
            for (const std::string& name : program_.calls[c].writes) writer[name] = c;
        }
        std::vector<Indices> complete(program_.calls.size());
        for (std::int64_t b = 0; b < layout_.num_trained(); ++b) {
            const Names& grads = program_.buckets[b].grads;
            std::size_t last = grads.empty() ? program_.calls.size() - 1 : 0;
            for (const std::string& name : grads) last = std::max(last, writer.at(name));
            complete[last].push_back(b);
        }
        return complete;
    }

    // Neighbouring calls that use the same bucket share one gather.
    void fetch(std::int64_t b, std::int64_t m) {
        refresh(b);
        if (std::ranges::count(gathered_, b) > 0) return;
        for (std::int64_t k = layout_.params() - 1; k >= 0; --k) add(Kind::kGather, b, m, k);
    }

    // Brings last step's updates to all ranks that hold the slice.
    void refresh(std::int64_t b) {
        if (is_fresh_[b] || b >= layout_.num_trained()) return;
        is_fresh_[b] = true;
        first_needed_.push_back(b);
        for (std::int64_t k = layout_.shards() - 1; k >= layout_.params(); --k) {
            add(Kind::kRefresh, b, kNoMicroBatch, k);
        }
    }

    void reduce_gradient(std::int64_t b, std::int64_t m) {
        add(Kind::kPack, b, m);
        for (std::int64_t k = 0; k < layout_.per_micro_batch(); ++k) add(Kind::kReduce, b, m, k);
        if (!layout_.packs_into_sum()) add(Kind::kAccumulate, b, m);
        if (m + 1 < program_.micro_batches) return;
        for (std::int64_t k = layout_.per_micro_batch(); k < layout_.all(); ++k) {
            add(Kind::kReduce, b, kNoMicroBatch, k);
        }
        add(Kind::kNorm, b);
    }

    void add(Kind kind, std::int64_t bucket, std::int64_t micro_batch, std::int64_t level) {
        add(kind, name_in("bucket", bucket), micro_batch, program_.levels[level].name);
    }

    void add(Kind kind, std::int64_t bucket, std::int64_t micro_batch = kNoMicroBatch) {
        add(kind, name_in("bucket", bucket), micro_batch, "");
    }

    void add(Kind kind, const std::string& what, std::int64_t micro_batch, const std::string& level) {
        Instruction instruction{
            .lane = Lane::kHost, .kind = kind, .what = what, .micro_batch = micro_batch, .level = level};
        instruction.lane = layout_.lane(instruction);
        Operands operands = layout_.operands(instruction);
        instruction.reads = std::move(operands.reads);
        instruction.writes = std::move(operands.writes);
        instruction.bytes = operands.bytes;
        instructions_.push_back(std::move(instruction));
    }

    const Program& program_;
    const Layout& layout_;
    std::vector<bool> is_fresh_;
    Indices first_needed_;  // buckets in the order in which the forward pass needs them
    Indices gathered_;      // buckets of the last call that used any
    std::vector<Instruction> instructions_;
};

std::unordered_set<std::string> transients(const Layout& layout,
                                           const std::vector<Instruction>& instructions) {
    std::unordered_set<std::string> names;
    for (const Instruction& i : instructions) names.insert(i.writes.begin(), i.writes.end());
    for (const Buffer& buffer : layout.buffers()) {
        if (buffer.persistent) names.erase(buffer.name);
    }
    return names;
}

// For each instruction, the transient operands that nobody uses later.
std::vector<Names> last_uses(const Layout& layout, const std::vector<Instruction>& instructions) {
    const auto transient = transients(layout, instructions);
    std::unordered_set<std::string> used_later;
    std::vector<Names> last(instructions.size());
    for (std::int64_t i = std::ssize(instructions) - 1; i >= 0; --i) {
        const auto& [reads, writes] = std::tie(instructions[i].reads, instructions[i].writes);
        for (const Names* names : {&reads, &writes}) {
            for (const std::string& name : *names) {
                if (transient.contains(name) && used_later.insert(name).second) last[i].push_back(name);
            }
        }
        for (const std::string& name : writes) {
            if (std::ranges::count(reads, name) == 0) used_later.erase(name);  // it is born here
        }
    }
    return last;
}

}  // namespace

std::vector<Instruction> serial_step(const Program& header, const Layout& layout) {
    std::vector<Instruction> instructions = SerialStep(header, layout).list();
    std::vector<Names> last = last_uses(layout, instructions);
    std::vector<Instruction> with_frees;
    for (std::size_t i = 0; i < instructions.size(); ++i) {
        const Lane lane = instructions[i].lane;
        with_frees.push_back(std::move(instructions[i]));
        if (last[i].empty()) continue;
        with_frees.push_back({.lane = lane, .kind = Kind::kFree, .what = "-", .writes = std::move(last[i])});
    }
    return with_frees;
}

}  // namespace ie::core

#include "core/costs.h"

#include <algorithm>

#include "core/error.h"

namespace ie::core {
namespace {

constexpr std::int64_t kFp32 = 4;
constexpr std::int64_t kAdamWBytes =
    28;  // per element: reads gradient, master and moments, writes the last three

std::int64_t reduce_all(const Costs& costs, std::int64_t bytes) {
    std::int64_t ns = costs.memory.latency_ns;
    for (const Rate& rate : costs.reduce) ns += rate.ns(bytes);
    return ns;
}

// Bytes that a local pass over a bucket reads and writes.
std::int64_t moved(const Instruction& i, const Program& program, const Layout& layout) {
    const std::int64_t bucket = layout.bucket_of(i);
    switch (i.kind) {
        case Kind::kPack: {
            const std::int64_t adds = layout.packs_into_sum() && i.micro_batch > 0;
            return layout.numel(bucket, 0) * (program.param_bytes + kFp32 + adds * kFp32);
        }
        case Kind::kAccumulate:
            return layout.numel(bucket, layout.per_micro_batch()) * kFp32 * (std::ssize(i.reads) + 1);
        case Kind::kNorm:
            return layout.numel(bucket, layout.shards()) * kFp32;
        case Kind::kUpdate:
            return layout.numel(bucket, layout.shards()) * (kAdamWBytes + program.param_bytes);
        default:
            fail(name_of(i.kind), " is not a pass over a bucket");
    }
}

}  // namespace

void check_costs(const Costs& costs, const Program& program) {
    const std::size_t levels = program.levels.size();
    IE_CHECK(costs.calls.size() == program.calls.size() && costs.gather.size() == levels &&
                 costs.reduce.size() == levels,
             "got costs of ", costs.calls.size(), " calls and of ", costs.gather.size(), " and ",
             costs.reduce.size(), " levels for a Program of ", program.calls.size(), " calls and ", levels,
             " levels");
}

std::int64_t cost_of(const Instruction& i, const Program& program, const Layout& layout, const Costs& costs) {
    switch (i.kind) {
        case Kind::kFree:
            return 0;
        case Kind::kCompute:
            return costs.calls[std::ranges::find(program.calls, i.what, &Call::name) - program.calls.begin()];
        case Kind::kGather:
        case Kind::kRefresh:
            return costs.gather[layout.level_of(i)].ns(i.bytes);
        case Kind::kReduce:
            return costs.reduce[layout.level_of(i)].ns(i.bytes);
        case Kind::kNorm:
            if (i.what == "all") return reduce_all(costs, i.bytes);
            [[fallthrough]];
        default:
            return costs.memory.ns(moved(i, program, layout));
    }
}

}  // namespace ie::core

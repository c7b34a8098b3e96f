// A step small enough to read: one layer and a head on four ranks, as the header of a Program.
#pragma once

#include <string>

#include "core/scheduling.h"

namespace ie::tests {

inline const std::string kLevels = "level P0 size=2 stride=1 link=near\nlevel OS1 size=2 stride=2 link=far\n";

inline core::Program small_header(const std::string& levels = kLevels, const std::string& mode = "fast",
                                  std::int64_t window_bytes = 0) {
    return core::parse_program("program v1 world=4 micro_batches=2 mode=" + mode +
                               " param_bytes=2 wire_bytes=4 window_bytes=" + std::to_string(window_bytes) +
                               " loss=%loss\n" + levels +
                               "bucket 0 numel=64 grads=%g1\n"
                               "bucket 1 numel=32 grads=%g0\n"
                               "value %tokens bytes=8\n"
                               "value %h bytes=8\n"
                               "value %loss bytes=8\n"
                               "value %saved bytes=8\n"
                               "value %g1 bytes=8\n"
                               "value %g0 bytes=8\n"
                               "value %dh bytes=8\n"
                               "call fwd reads=%tokens buckets=1 writes=%h\n"
                               "call loss reads=%h buckets=0 writes=%loss,%saved\n"
                               "call bwd.head reads=%saved buckets=0 writes=%g1,%dh\n"
                               "call bwd reads=%dh buckets=1 writes=%g0\n");
}

inline core::Costs small_costs(const core::Program& header) {
    return {.calls = std::vector<std::int64_t>(header.calls.size(), 100),
            .gather = std::vector<core::Rate>(header.levels.size(), {10, 1000}),
            .reduce = std::vector<core::Rate>(header.levels.size(), {10, 1000}),
            .memory = {5, 100000}};
}

inline core::Program small_program(const std::string& levels = kLevels, const std::string& mode = "fast",
                                   bool overlap = true) {
    const core::Program header = small_header(levels, mode);
    return schedule(header, small_costs(header), overlap);
}

// The first instruction of a kind.
inline std::size_t first(const core::Program& program, core::Kind kind) {
    std::size_t i = 0;
    while (program.instructions[i].kind != kind) ++i;
    return i;
}

}  // namespace ie::tests

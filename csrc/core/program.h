// The Program: one training step of every rank as a flat list of instructions. internevo_engine/program.py
// documents the parts and the text; this is the same in C++, and both sides read and write the same bytes.
//
// Names are strings on purpose: a Program says everything by name, and whoever needs indices (the checker)
// makes its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ie::core {

enum class State { kP, kG, kOS, kR };
enum class Link { kNear, kFar };
enum class Mode { kFast, kOrdered, kInvariant };
enum class Lane { kCompute, kGather, kNear, kFar, kOptimizer, kHost };
enum class Kind { kGather, kRefresh, kCompute, kPack, kReduce, kAccumulate, kNorm, kUpdate, kFree };
inline constexpr int kNumLanes = 6;
inline constexpr std::int64_t kNoMicroBatch = -1;

using Names = std::vector<std::string>;

struct Level {
    std::string name;  // state and index: "OS2"
    State state;
    std::int64_t size;
    std::int64_t stride;
    Link link;
};

struct FlatBucket {
    std::int64_t numel;
    Names grads;
    bool trained = true;  // else it is only held and gathered
};

struct Value {
    std::string name;
    std::int64_t bytes;
};

struct Call {
    std::string name;
    Names reads;
    std::vector<std::int64_t> buckets;
    Names writes;
};

struct Buffer {
    std::string name;
    std::int64_t bytes;
    bool persistent;
};

struct Instruction {
    Lane lane;
    Kind kind;
    std::string what;
    std::int64_t micro_batch = kNoMicroBatch;
    std::string level{};  // empty: none
    std::int64_t bytes = 0;
    std::int64_t cost = 0;  // ns
    Names reads{};
    Names writes{};
    std::vector<std::int64_t> after{};
};

struct Program {
    std::int64_t world;
    std::int64_t micro_batches;
    Mode mode;
    std::int64_t param_bytes;
    std::int64_t wire_bytes;
    std::int64_t window_bytes;
    Names loss;
    std::vector<Level> levels;
    std::vector<FlatBucket> buckets;
    std::vector<Value> values;
    std::vector<Call> calls;
    std::vector<Buffer> buffers;
    std::vector<Instruction> instructions;
};

std::string_view name_of(Lane lane);
std::string_view name_of(Kind kind);

std::string print_program(const Program& program);

// Throws ie::Error with the number of the line that can't be read.
Program parse_program(std::string_view text);

}  // namespace ie::core

// torch.classes.internevo.Executor: runs a Program. One call a step; Python runs only inside regions, on the
// calling thread.
//
//     step(inputs, lr, step, stop, limits) -> [loss sum, count, stop, square sum] over all micro-batches and
//     ranks advance(inputs, end)         instructions below `end`, ahead of the step() that runs the rest
//
// What each instruction does is csrc/core/layout.h read as orders: a kind is a row of kActions, an operand a
// slot of Memory, a lane a thread or a stream of the device (queueing.h), a (lane, level) a process group.
// Parameters are updated unless the loss or the gradient is not finite or above its limit, or nothing was
// counted; the caller sees that in what step() returns, and then no rank has updated anything. On streams
// step() returns as soon as everything is queued: reading what it returned is the only wait for the device.
//
// An error in any lane ends the step and is rethrown with the instruction it happened in: what a region
// raises as it is, with a note; an error of a backend as DistBackendError. The executor is of no use then.
#pragma once

#include <torch/custom_class.h>

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "core/program.h"
#include "runtime/audit.h"
#include "runtime/board.h"
#include "runtime/memory.h"
#include "runtime/queueing.h"
#include "runtime/region.h"
#include "runtime/totals.h"
#include "runtime/transfers.h"

namespace ie::runtime {

// AdamW and clipping; 0 clips nothing.
struct Settings {
    double clip, beta1, beta2, eps, weight_decay;
};

// What this rank owns of one bucket: flat fp32 states, and the parameter where it is not its own master.
struct Shard {
    at::Tensor master, exp_avg, exp_avg_sq;
    std::optional<at::Tensor> param;
    std::int64_t decayed_numel;
};

// A parameter of a call: a view of its bucket.
struct ParamView {
    std::int64_t bucket, offset;
    std::vector<std::int64_t> shape;
};

struct BoundCall {
    Region region;
    std::vector<ParamView> params;
};

// Everything that a Program leaves open.
struct Bindings {
    std::int64_t rank;
    std::unordered_map<std::string, BoundCall> calls;
    std::vector<std::vector<std::int64_t>> grad_offsets;  // of each trained bucket's gradients, in elements
    Memory::Tensors buffers;
    std::vector<Shard> shards;                                   // of each trained bucket
    std::unordered_map<std::string, std::string> groups;         // "near G1" -> name of the process group
    std::unordered_map<std::string, std::vector<Route>> routes;  // of each level; the world has none
    at::ScalarType wire;
    Settings settings;
    bool audits;           // run.guard=full
    std::string queueing;  // what lanes are: a row of queueing.cpp
    int board;             // file of the board on which others watch this rank; -1: nobody does
};

class Executor : public torch::CustomClassHolder {
  public:
    Executor(const std::string& program, Bindings bindings);

    // Inputs are the values that no call writes, by operand ("%m0.tokens"), given before they are read, and
    // kept to the end of the step; step counts from 1.
    void advance(const Memory::Tensors& inputs, std::int64_t end);
    at::Tensor step(const Memory::Tensors& inputs, double lr, std::int64_t step, bool stop, Limits limits);

    // Of the last step, where it is audited: see audit.h. States are accepted as they are where the caller
    // has replaced them.
    const Audit& audit() const;
    void accept_states();

    at::Tensor value(const std::string& name) const { return memory_.read(memory_.slot(name)); }
    at::Tensor trace() const;  // [instructions, 2]: start and end in the last step, monotonic ns
    std::int64_t live_bytes() const { return memory_.live_bytes(); }
    std::int64_t peak_bytes() const { return memory_.peak_bytes(); }  // since the step began

  private:
    struct Slice {
        std::int64_t offset, numel;
    };

    // An instruction with its names resolved.
    struct Order {
        core::Kind kind;
        std::string note;                             // what errors say of where they happened
        std::vector<Memory::Slot> reads{}, writes{};  // of a call: values only
        std::vector<Memory::Slot> releases{};         // whose memory goes back before this one
        std::int64_t bucket = -1;
        Account* account = nullptr;  // of what it sends, where that is audited
        const BoundCall* call = nullptr;
        const Transfers* transfers = nullptr;
        bool is_replicated = false;  // a reduce over replicas is an all-reduce
        Slice group{}, own{};  // of a gather or refresh: what the group and this rank hold of the buffer
    };
    using Action = void (Executor::*)(const Order&);
    static const Action kActions[];

    void open_accounts();
    std::vector<Memory::Slot> slots(const core::Names& names) const;
    Order resolve(const core::Instruction& instruction, const std::string& line);
    void resolve_call(Order& order, const std::string& name);
    void resolve_level(Order& order, const core::Instruction& instruction);
    const Transfers* transfers_for(const core::Instruction& instruction);
    std::pair<Slice, Slice> slices(std::int64_t bucket, std::int64_t level, bool of_shard) const;
    bool is_first_replica() const;

    void put(const Memory::Tensors& inputs);
    void execute(std::size_t instruction);
    void release(const std::vector<Memory::Slot>& slots);

    void gather(const Order& order);
    void compute(const Order& order);
    void pack(const Order& order);
    void reduce(const Order& order);
    void accumulate(const Order& order);
    void norm(const Order& order);
    void update(const Order& order);
    void free(const Order&) {}  // the releases are all of it, here or in a later instruction

    core::Program program_;
    Bindings bindings_;
    Board board_;
    std::size_t num_trained_;  // the first buckets; those of frozen parameters come after them
    Memory memory_;
    Totals totals_;
    std::unordered_map<std::string, std::unique_ptr<Transfers>> transfers_;
    std::unique_ptr<Audit> audit_;           // null: none
    std::vector<Memory::Slot> param_slots_;  // of each bucket
    std::vector<Order> orders_;
    std::vector<Memory::Slot> inputs_;  // of this step

    double lr_ = 0;
    std::int64_t step_ = 0;
    Limits limits_{};
    at::Tensor grad_scale_;  // [1] fp32; 0 where the step must not update

    std::vector<Memory::Slot> last_releases_;  // at the end of the step
    Transfers::Wait wait_;
    std::unique_ptr<LaneRunner> lanes_;  // last: its threads end before what they use
};

}  // namespace ie::runtime

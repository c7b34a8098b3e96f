#include "runtime/executor.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "core/error.h"
#include "core/faults.h"
#include "core/layout.h"
#include "runtime/damage.h"

namespace ie::runtime {
namespace {

using core::Kind;
using core::State;

// The lines of a Program's instructions, without the padding between words.
std::vector<std::string> instruction_lines(const std::string& text, std::size_t count) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        std::istringstream words(line);
        std::string joined;
        for (std::string word; words >> word;) joined += (joined.empty() ? "" : " ") + word;
        lines.push_back(joined);
    }
    lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(count));
    return lines;
}

std::int64_t bucket_of(const std::string& what) {
    return what.starts_with("bucket[") ? std::stoll(what.substr(7)) : -1;
}

// Before an instruction of this kind.
core::FaultPoint point_of(Kind kind) {
    static_assert(static_cast<int>(core::FaultPoint::kFree) - static_cast<int>(core::FaultPoint::kGather) ==
                  static_cast<int>(Kind::kFree));
    return static_cast<core::FaultPoint>(static_cast<int>(core::FaultPoint::kGather) +
                                         static_cast<int>(kind));
}

std::vector<at::Tensor> states_of(const Shard& shard) {
    return {shard.master, shard.exp_avg, shard.exp_avg_sq};
}

void adamw(const Shard& shard, const at::Tensor& grad, const at::Tensor& grad_scale, const Settings& settings,
           double lr, std::int64_t step) {
    using Op = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                    const std::optional<at::Tensor>&, const at::Tensor&, std::int64_t, double, double, double,
                    double, double, std::int64_t);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("internevo::adamw_", "").typed<Op>();
    op.call(shard.master, shard.exp_avg, shard.exp_avg_sq, grad, shard.param, grad_scale, shard.decayed_numel,
            lr, settings.beta1, settings.beta2, settings.eps, settings.weight_decay, step);
}

}  // namespace

Executor::Executor(const std::string& program, Bindings bindings)
    : program_(core::parse_program(program)),
      bindings_(std::move(bindings)),
      board_(bindings_.board, static_cast<int>(program_.world)),
      num_trained_(
          static_cast<std::size_t>(std::ranges::count_if(program_.buckets, &core::FlatBucket::trained))),
      memory_(program_, bindings_.buffers),
      totals_(memory_.device()) {
    IE_CHECK(bindings_.grad_offsets.size() == num_trained_ && bindings_.shards.size() == num_trained_,
             "the Program trains ", num_trained_, " buckets, not ", bindings_.grad_offsets.size(), " and ",
             bindings_.shards.size());
    IE_CHECK(elementSize(bindings_.wire) == static_cast<std::size_t>(program_.wire_bytes),
             "the Program sends gradients of ", program_.wire_bytes, " bytes, not of ", bindings_.wire);
    for (std::size_t b = 0; b < program_.buckets.size(); ++b)
        param_slots_.push_back(memory_.slot(core::name_in("param", b)));
    Queueing queueing = make_queueing(bindings_.queueing, program_, memory_.device());
    wait_ = std::move(queueing.wait);
    const auto lines = instruction_lines(program, program_.instructions.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
        orders_.push_back(resolve(program_.instructions[i], lines[i]));
        orders_[i].releases = slots(queueing.releases.names[i]);
    }
    last_releases_ = slots(queueing.releases.names.back());
    if (bindings_.audits) open_accounts();
    lanes_ = std::move(queueing.lanes);
}

void Executor::open_accounts() {
    std::vector<std::int64_t> members;
    for (const Order& order : orders_)
        members.push_back(order.transfers && order.kind != Kind::kNorm ? order.transfers->size() : 0);
    audit_ = std::make_unique<Audit>(members, std::ssize(program_.buckets), memory_.device());
    for (std::size_t i = 0; i < orders_.size(); ++i) orders_[i].account = audit_->account(i);
    accept_states();
}

const Audit& Executor::audit() const {
    IE_CHECK(audit_, "steps are audited only with run.guard=full");
    return *audit_;
}

void Executor::accept_states() {
    if (!audit_) return;
    const auto num_buckets = std::ssize(bindings_.shards);
    for (std::int64_t b = 0; b < num_buckets; ++b) audit_->leave(b, states_of(bindings_.shards[b]));
}

std::vector<Memory::Slot> Executor::slots(const core::Names& names) const {
    std::vector<Memory::Slot> slots;
    for (const std::string& name : names) slots.push_back(memory_.slot(name));
    return slots;
}

Executor::Order Executor::resolve(const core::Instruction& instruction, const std::string& line) {
    Order order{.kind = instruction.kind, .note = "in instruction " + line};
    order.reads = slots(instruction.reads);
    order.writes = slots(instruction.writes);
    order.bucket = bucket_of(instruction.what);
    if (instruction.kind == Kind::kCompute) resolve_call(order, instruction.what);
    if (!instruction.level.empty()) resolve_level(order, instruction);
    return order;
}

void Executor::resolve_call(Order& order, const std::string& name) {
    const auto call = std::ranges::find(program_.calls, name, &core::Call::name);
    const auto bound = bindings_.calls.find(name);
    IE_CHECK(call != program_.calls.end() && bound != bindings_.calls.end(), "no region for call ", name);
    order.reads.resize(call->reads.size());  // the rest are buckets, of which the call takes views
    order.call = &bound->second;
}

void Executor::resolve_level(Order& order, const core::Instruction& instruction) {
    order.transfers = transfers_for(instruction);
    const auto level = std::ranges::find(program_.levels, instruction.level, &core::Level::name);
    if (level == program_.levels.end()) return;  // the whole world
    order.is_replicated = level->state == State::kR;
    if (instruction.kind == Kind::kGather || instruction.kind == Kind::kRefresh) {
        const bool of_shard = instruction.kind == Kind::kRefresh;
        std::tie(order.group, order.own) = slices(order.bucket, level - program_.levels.begin(), of_shard);
    }
}

const Transfers* Executor::transfers_for(const core::Instruction& instruction) {
    if (program_.world == 1) return nullptr;
    const std::string place = std::string(name_of(instruction.lane)) + " " + instruction.level;
    const auto [found, is_new] = transfers_.try_emplace(place);
    if (is_new) {
        const auto name = bindings_.groups.find(place);
        IE_CHECK(name != bindings_.groups.end(), "no process group for lane and level '", place, "'");
        found->second =
            std::make_unique<Transfers>(c10d::resolve_process_group(name->second),
                                        bindings_.routes[instruction.level], bindings_.wire, wait_);
    }
    return found->second.get();
}

// What the ranks of a level's group hold together and what this rank holds of it, in elements of the whole
// bucket, or of its P slice.
std::pair<Executor::Slice, Executor::Slice> Executor::slices(std::int64_t bucket, std::int64_t level,
                                                             bool of_shard) const {
    Slice group{0, program_.buckets[bucket].numel}, own = group;
    for (std::int64_t k = 0; k <= level; ++k) {
        const core::Level& cut = program_.levels[k];
        group = own;
        own.numel /= cut.size;
        own.offset += own.numel * (bindings_.rank / cut.stride % cut.size);
        if (of_shard && cut.state == State::kP) own.offset = 0;
    }
    return {group, own};
}

bool Executor::is_first_replica() const {
    return std::ranges::none_of(program_.levels, [&](const core::Level& level) {
        return level.state == State::kR && bindings_.rank / level.stride % level.size > 0;
    });
}

void Executor::advance(const Memory::Tensors& inputs, std::int64_t end) {
    put(inputs);
    lanes_->run([this](std::size_t instruction) { execute(instruction); }, static_cast<std::size_t>(end));
}

at::Tensor Executor::step(const Memory::Tensors& inputs, double lr, std::int64_t step, bool stop,
                          Limits limits) {
    put(inputs);
    lr_ = lr;
    step_ = step;
    limits_ = limits;
    totals_.add(Totals::kStop, static_cast<double>(stop));
    lanes_->run([this](std::size_t instruction) { execute(instruction); });
    release(last_releases_);
    for (const Memory::Slot slot : inputs_) memory_.free(slot);
    return totals_.tensor();
}

// The first inputs of a step begin it.
void Executor::put(const Memory::Tensors& inputs) {
    if (lanes_->next() == 0) {
        inputs_.clear();
        totals_.reset();
        if (audit_) audit_->begin();
        memory_.reset_peak();
    }
    for (const auto& [name, tensor] : inputs) {
        inputs_.push_back(memory_.slot(name));
        memory_.put(inputs_.back(), tensor);
    }
}

at::Tensor Executor::trace() const {
    std::vector<std::int64_t> times;
    for (const LaneRunner::Span& span : lanes_->spans()) {
        for (const auto time : {span.start, span.end}) {
            times.push_back(std::chrono::nanoseconds(time.time_since_epoch()).count());
        }
    }
    return at::tensor(times, at::kLong).view({-1, 2});
}

void Executor::execute(std::size_t instruction) {
    const at::NoGradGuard no_grad;
    const c10::DeviceGuard on_device(memory_.device());  // a thread begins on device 0
    const Order& order = orders_[instruction];
    const core::Lane lane = program_.instructions[instruction].lane;
    Slot& slot = board_.slot(static_cast<int>(bindings_.rank));
    slot.begin(lane, static_cast<std::int64_t>(instruction));
    release(order.releases);
    try {
        core::fault(point_of(order.kind));
        (this->*kActions[static_cast<std::size_t>(order.kind)])(order);
        slot.end(lane);
    } catch (python_error& error) {
        add_note(error, order.note);
        throw;
    } catch (c10::Error& error) {  // of a type that says something: out of memory, a backend
        error.add_context(order.note);
        throw;
    } catch (const Error& error) {
        fail(error.what(), ", ", order.note);
    } catch (const std::exception& error) {
        if (!order.transfers) fail(error.what(), ", ", order.note);
        C10_THROW_ERROR(DistBackendError, error.what() + (", " + order.note));
    }
}

void Executor::release(const std::vector<Memory::Slot>& slots) {
    for (const Memory::Slot slot : slots) memory_.free(slot);
}

// In the order of core::Kind; a refresh is a gather in place.
const Executor::Action Executor::kActions[] = {
    &Executor::gather,     &Executor::gather, &Executor::compute, &Executor::pack, &Executor::reduce,
    &Executor::accumulate, &Executor::norm,   &Executor::update,  &Executor::free,
};

void Executor::gather(const Order& order) {
    const at::Tensor& buffer = memory_.target(order.writes[0]);
    const bool in_place = order.reads[0] == order.writes[0];
    const at::Tensor own =
        in_place ? buffer.narrow(0, order.own.offset, order.own.numel) : memory_.read(order.reads[0]);
    order.transfers->all_gather(buffer.narrow(0, order.group.offset, order.group.numel), own, order.account);
}

void Executor::compute(const Order& order) {
    const BoundCall& call = *order.call;
    std::vector<at::Tensor> inputs;
    for (const Memory::Slot slot : order.reads) inputs.push_back(memory_.read(slot));
    for (const ParamView& param : call.params) {
        const at::Tensor& flat = memory_.read(param_slots_.at(param.bucket));
        if (const auto fault = core::fault(core::FaultPoint::kWeights)) damage(flat, *fault);
        const std::int64_t numel = c10::multiply_integers(param.shape);
        inputs.push_back(flat.narrow(0, param.offset, numel).view(param.shape));
    }
    auto outputs = call.region(inputs, order.writes.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) memory_.put(order.writes[i], std::move(outputs[i]));
}

// Gradients to their places. What lies between the places is zero, for it is reduced and squared too.
void Executor::pack(const Order& order) {
    const auto& offsets = bindings_.grad_offsets[order.bucket];
    const at::Tensor& flat = memory_.target(order.writes[0]);
    const bool adds = order.reads.size() > offsets.size();  // reads the sum as well
    std::int64_t end = 0;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
        const at::Tensor& grad = memory_.read(order.reads[i]);
        const at::Tensor place = flat.narrow(0, offsets[i], grad.numel()).view(grad.sizes());
        adds ? place.add_(grad) : place.copy_(grad);
        if (!adds) flat.slice(0, end, offsets[i]).zero_();
        end = offsets[i] + grad.numel();
    }
    if (!adds) flat.slice(0, end).zero_();
    if (const auto fault = core::fault(core::FaultPoint::kGradient)) damage(flat, *fault);
}

void Executor::reduce(const Order& order) {
    const at::Tensor& in = memory_.read(order.reads[0]);
    const at::Tensor& out = memory_.target(order.writes[0]);
    order.is_replicated ? order.transfers->all_reduce(out, in, order.account)
                        : order.transfers->reduce_scatter(out, in, order.account);
}

// Adds what it reads, from left to right. The target may be the second of two, never one of more.
void Executor::accumulate(const Order& order) {
    at::Tensor sum = memory_.target(order.writes[0]);
    const at::Tensor& part = memory_.read(order.reads[0]);
    if (order.reads.size() == 1) sum.copy_(part);
    if (order.reads.size() > 1) at::add_out(sum, part, memory_.read(order.reads[1]));
    for (std::size_t i = 2; i < order.reads.size(); ++i) sum.add_(memory_.read(order.reads[i]));
}

// Of a bucket: its squares, which one of all replicas adds. Of all: the losses, and the sum over ranks.
void Executor::norm(const Order& order) {
    if (order.bucket >= 0) {
        const bool in_order = program_.mode != core::Mode::kFast;
        if (is_first_replica()) totals_.add_squares(memory_.read(order.reads[0]), in_order);
        if (audit_) audit_->find(order.bucket, states_of(bindings_.shards[order.bucket]));
        return;
    }
    for (std::size_t i = num_trained_; i < order.reads.size(); i += 2) {
        totals_.add(Totals::kLossSum, memory_.read(order.reads[i]));
        totals_.add(Totals::kCount, memory_.read(order.reads[i + 1]));
    }
    if (order.transfers) totals_.sum_over(*order.transfers);
    grad_scale_ = totals_.grad_scale(bindings_.settings.clip, limits_);
    if (audit_) grad_scale_.masked_fill_(audit_->settle(order.transfers).logical_not(), 0);
}

void Executor::update(const Order& order) {
    const at::Tensor& grad = memory_.read(order.reads[0]);
    adamw(bindings_.shards[order.bucket], grad, grad_scale_, bindings_.settings, lr_, step_);
    if (audit_) audit_->leave(order.bucket, states_of(bindings_.shards[order.bucket]));
}

}  // namespace ie::runtime

// torch.classes.internevo.Executor: the types that torch can hand over become those of executor.h.
#include <torch/library.h>

#include "core/error.h"
#include "core/faults.h"
#include "runtime/executor.h"

namespace ie::runtime {
namespace {

using std::int64_t;
using std::string;
using ParamTuple = std::tuple<int64_t, int64_t, std::vector<int64_t>>;
using CallTuple = std::tuple<string, int64_t, std::vector<ParamTuple>>;
using ShardTuple = std::tuple<std::vector<at::Tensor>, int64_t>;

template <typename Value>
std::unordered_map<string, Value> to_map(const c10::Dict<string, Value>& dict) {
    std::unordered_map<string, Value> map;
    for (const auto& item : dict) map.emplace(item.key(), item.value());
    return map;
}

std::unordered_map<string, BoundCall> to_calls(const std::vector<CallTuple>& tuples) {
    std::unordered_map<string, BoundCall> calls;
    for (const auto& [name, id, params] : tuples) {
        BoundCall& call = calls.emplace(name, BoundCall{Region(id), {}}).first->second;
        for (const auto& [bucket, offset, shape] : params) call.params.push_back({bucket, offset, shape});
    }
    return calls;
}

std::vector<Shard> to_shards(const std::vector<ShardTuple>& tuples) {
    std::vector<Shard> shards;
    for (const auto& [tensors, decayed_numel] : tuples) {
        IE_CHECK(tensors.size() == 3 || tensors.size() == 4, "a shard has ", tensors.size(), " tensors");
        shards.push_back({tensors[0], tensors[1], tensors[2], {}, decayed_numel});
        if (tensors.size() == 4) shards.back().param = tensors[3];
    }
    return shards;
}

std::unordered_map<string, std::vector<Route>> to_routes(
    const c10::Dict<string, std::vector<Route::Row>>& dict) {
    std::unordered_map<string, std::vector<Route>> routes;
    for (const auto& item : dict) routes.emplace(item.key(), Route::parse(item.value()));
    return routes;
}

Settings to_settings(const std::vector<double>& values) {
    IE_CHECK(values.size() == 5, "expected clip, beta1, beta2, eps and weight_decay, got ", values.size());
    return {values[0], values[1], values[2], values[3], values[4]};
}

c10::intrusive_ptr<Executor> make(const string& program, int64_t rank, const std::vector<CallTuple>& calls,
                                  std::vector<std::vector<int64_t>> grad_offsets,
                                  const c10::Dict<string, at::Tensor>& buffers,
                                  const std::vector<ShardTuple>& shards,
                                  const c10::Dict<string, string>& groups,
                                  const c10::Dict<string, std::vector<Route::Row>>& routes,
                                  at::ScalarType wire, const std::vector<double>& settings,
                                  const string& queueing, bool audits, int64_t board) {
    return c10::make_intrusive<Executor>(
        program, Bindings{rank, to_calls(calls), std::move(grad_offsets), to_map(buffers), to_shards(shards),
                          to_map(groups), to_routes(routes), wire, to_settings(settings), audits, queueing,
                          static_cast<int>(board)});
}

void advance(const c10::intrusive_ptr<Executor>& executor, const c10::Dict<string, at::Tensor>& inputs,
             int64_t end) {
    executor->advance(to_map(inputs), end);
}

at::Tensor step(const c10::intrusive_ptr<Executor>& executor, const c10::Dict<string, at::Tensor>& inputs,
                double lr, int64_t step, bool stop, double max_loss, double max_grad_norm) {
    return executor->step(to_map(inputs), lr, step, stop, {max_loss, max_grad_norm});
}

void arm_faults(const string& plan, int64_t seed, int64_t rank, const string& log) {
    core::arm_faults(plan, seed, rank, log);
}

}  // namespace
}  // namespace ie::runtime

TORCH_LIBRARY_FRAGMENT(internevo, m) {
    using ie::runtime::Executor;
    m.def("arm_faults(str plan, int seed, int rank, str log) -> ()", &ie::runtime::arm_faults);
    m.def("disarm_faults() -> ()", &ie::core::disarm_faults);
    m.def("faults_in_step(int step) -> ()", &ie::core::faults_in_step);
    m.class_<Executor>("Executor")
        .def(torch::init(&ie::runtime::make))
        .def("advance", &ie::runtime::advance)
        .def("step", &ie::runtime::step)
        .def("audit_total", [](const c10::intrusive_ptr<Executor>& self) { return self->audit().total(); })
        .def("audit_own", [](const c10::intrusive_ptr<Executor>& self) { return self->audit().own(); })
        .def("messages",
             [](const c10::intrusive_ptr<Executor>& self, int64_t i) { return self->audit().messages(i); })
        .def("accept_states", &Executor::accept_states)
        .def("value", &Executor::value)
        .def("trace", &Executor::trace)
        .def("live_bytes", &Executor::live_bytes)
        .def("peak_bytes", &Executor::peak_bytes);
}

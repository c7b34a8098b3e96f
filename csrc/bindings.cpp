// internevo_engine._core: the host-only C++ core for Python. The only file that includes pybind11, and it
// includes none of torch's headers: torch carries another version of pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <csignal>

#include "core/bucketing.h"
#include "core/checking.h"
#include "core/error.h"
#include "core/faults.h"
#include "core/scheduling.h"
#include "core/simulation.h"
#include "runtime/watchdog.h"

namespace py = pybind11;
using namespace py::literals;
using ie::core::Bucket;
using ie::core::Param;
using ie::core::Rate;
using ie::core::Simulation;
using ie::runtime::Board;
using ie::runtime::Slot;
using ie::runtime::Watchdog;

namespace {

void throw_as_value_error(std::exception_ptr thrown) {
    try {
        std::rethrow_exception(thrown);
    } catch (const ie::Error& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
}

py::str repr(const Bucket& bucket) {
    return py::str("Bucket(params={}, offsets={}, numel={}, decayed_numel={})")
        .format(bucket.params, bucket.offsets, bucket.numel, bucket.decayed_numel);
}

// Programs cross the border as text; both sides read and write the same.
std::string schedule(const std::string& header, std::vector<std::int64_t> call_ns, std::vector<Rate> gather,
                     std::vector<Rate> reduce, Rate memory, bool overlap) {
    const ie::core::Costs costs{std::move(call_ns), std::move(gather), std::move(reduce), memory};
    return print_program(schedule(ie::core::parse_program(header), costs, overlap));
}

// Parsed once, run for every cost table that is tried.
std::vector<std::pair<std::int64_t, std::int64_t>> simulate(const Simulation& simulation,
                                                            std::vector<std::int64_t> call_ns,
                                                            std::vector<Rate> gather,
                                                            std::vector<Rate> reduce, Rate memory,
                                                            double contention) {
    const ie::core::Costs costs{std::move(call_ns), std::move(gather), std::move(reduce), memory};
    std::vector<std::pair<std::int64_t, std::int64_t>> spans;
    for (const ie::core::Span& span : simulation.run(costs, contention)) {
        spans.emplace_back(span.start, span.end);
    }
    return spans;
}

std::vector<std::string> check_program(const std::string& text) {
    return check_program(ie::core::parse_program(text));
}

std::string reprint_program(const std::string& text) {
    return print_program(ie::core::parse_program(text));
}

// What others can know of a rank.
py::dict read_slot(const Board& board, int rank) {
    const Slot& slot = board.slot(rank);
    py::list begun;
    for (const auto& [step, instruction, time_ns] : slot.begun())
        begun.append(py::make_tuple(step, instruction, time_ns));
    return py::dict("phase"_a = ie::runtime::kPhases.at(static_cast<std::size_t>(slot.phase.load())).name,
                    "phase_began_ns"_a = slot.phase_began_ns.load(), "step"_a = slot.step.load(),
                    "verdict"_a = ie::runtime::name_of(static_cast<ie::runtime::Cause>(slot.verdict.load())),
                    "culprit"_a = slot.culprit.load(), "begun"_a = begun);
}

// Says it and ends the process, whatever its other threads do.
std::unique_ptr<Watchdog> watch(std::shared_ptr<Board> board, int rank, int words, int stacks, int lost_code,
                                int hang_code) {
    return std::make_unique<Watchdog>(std::move(board), rank,
                                      [=](const auto& verdict, const std::string& text) {
                                          for (const int file : {STDERR_FILENO, words})
                                              ::dprintf(file, "error: rank %d: %s\n", rank, text.c_str());
                                          if (verdict.cause == ie::runtime::Cause::kLost) ::_exit(lost_code);
                                          ::raise(stacks);
                                          ::_exit(hang_code);
                                      });
}

// (action, number), or None.
std::optional<std::pair<std::string, std::int64_t>> fault(const std::string& point) {
    if (!ie::core::detail::armed.load(std::memory_order_relaxed)) return {};
    const auto found = ie::core::fault(ie::core::fault_point(point));
    if (!found) return {};
    return std::pair(std::string(name_of(found->action)), found->number);
}

std::vector<std::tuple<std::string, std::string, std::string>> fault_points() {
    std::vector<std::tuple<std::string, std::string, std::string>> rows;
    for (const auto& [name, where, actions] : ie::core::fault_points())
        rows.emplace_back(name, where, actions);
    return rows;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Host-only core: bucketing, scheduling, checking, watching. No torch inside.";
    py::register_local_exception_translator(throw_as_value_error);

    // What this build was made for; runtime/extension.py compares it with what it finds.
    m.attr("TORCH_VERSION") = IE_TORCH_VERSION;
    m.attr("HAS_CUDA_KERNELS") = static_cast<bool>(IE_WITH_CUDA);

    py::class_<Param>(m, "Param", "A parameter as bucketing sees it: numel, layer, decayed, trained.")
        .def(py::init<std::int64_t, std::int64_t, bool, bool>(), "numel"_a, "layer"_a, "decayed"_a,
             "trained"_a = true)
        .def_readonly("numel", &Param::numel)
        .def_readonly("layer", &Param::layer)
        .def_readonly("decayed", &Param::decayed)
        .def_readonly("trained", &Param::trained);

    py::class_<Bucket>(m, "Bucket", "Parameters that travel as one flat buffer; counts are elements.")
        .def_readonly("params", &Bucket::params, "Indices of the parameters, in order of placement.")
        .def_readonly("offsets", &Bucket::offsets, "First element of each of params.")
        .def_readonly("numel", &Bucket::numel, "Length, a multiple of 16 * num_shards.")
        .def_readonly("decayed_numel", &Bucket::decayed_numel, "Where weight decay ends.")
        .def_readonly("trained", &Bucket::trained, "Whether its parameters are.")
        .def("__repr__", &repr);

    m.def("make_buckets", &ie::core::make_buckets, "params"_a, "target_bytes"_a, "num_shards"_a,
          "Buckets in the order in which their gradients are complete. Raises ValueError.");

    py::class_<Rate>(m, "Rate", "latency_ns + bytes * 1000 / bytes_per_us nanoseconds, in integers.")
        .def(py::init<std::int64_t, std::int64_t>(), "latency_ns"_a, "bytes_per_us"_a);

    m.def("schedule", &schedule, "header"_a, py::kw_only(), "call_ns"_a, "gather"_a, "reduce"_a, "memory"_a,
          "overlap"_a, "The Program for a header, both as text. Raises ValueError.");
    py::class_<Simulation>(m, "Simulation", "A Program that can be run on paper, for any costs.")
        .def(py::init([](const std::string& text) { return Simulation(ie::core::parse_program(text)); }),
             "text"_a)
        .def("run", &simulate, py::kw_only(), "call_ns"_a, "gather"_a, "reduce"_a, "memory"_a, "contention"_a,
             "Start and end of each instruction in ns. Raises ValueError.");
    m.def("check_program", &check_program, "text"_a,
          "One line for each problem. Raises ValueError if unreadable.");
    m.def("fault_points", &fault_points, "(name, where, actions) of each point; see core/faults.h.");
    m.def("arm_faults", &ie::core::arm_faults, "plan"_a, "seed"_a, "rank"_a, "log"_a, "Raises ValueError.");
    m.def("disarm_faults", &ie::core::disarm_faults, "Nothing goes wrong any more.");
    m.def("faults_in_step", &ie::core::faults_in_step, "step"_a, "The step about to begin, from 1.");
    m.def("fault", &fault, "point"_a, py::call_guard<py::gil_scoped_release>(),
          "Pass a point: (action, number) that is left to do, or None. Raises ValueError.");
    m.def("reprint_program", &reprint_program, "text"_a, "Reads and writes a Program. Raises ValueError.");

    py::class_<Board, std::shared_ptr<Board>>(m, "Board",
                                              "What every rank of a host is doing; csrc/runtime/board.h.")
        .def(py::init<int, int>(), "fd"_a, "world"_a, "Shares the file `fd`; -1: alone. Raises ValueError.")
        .def_property_readonly("world", &Board::world)
        .def(
            "enter",
            [](Board& b, int rank, const std::string& phase) {
                b.slot(rank).enter(ie::runtime::phase_named(phase));
            },
            "rank"_a, "phase"_a, "Raises ValueError for an unknown phase.")
        .def(
            "begin_step", [](Board& b, int rank, std::int64_t step) { b.slot(rank).begin_step(step); },
            "rank"_a, "step"_a)
        .def(
            "beat", [](Board& b, int rank) { b.slot(rank).gil_beats.fetch_add(1); }, "rank"_a,
            "The rank runs Python.")
        .def(
            "report_lost", [](Board& b, int rank) { b.lost() = rank + 1; }, "rank"_a,
            "The watchdogs of all ranks end them.")
        .def("read", &read_slot, "rank"_a, "phase, phase_began_ns, step, verdict, culprit, begun.");

    py::class_<Watchdog>(m, "Watchdog",
                         "Ends this process when a rank is lost or hangs; csrc/runtime/watchdog.h.")
        .def(py::init(&watch), "board"_a, "rank"_a, py::kw_only(), "words"_a, "stacks"_a, "lost_code"_a,
             "hang_code"_a);
}

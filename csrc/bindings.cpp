// internevo_engine._core: the host-only C++ core for Python. The only file that includes pybind11, and it
// includes none of torch's headers: torch carries another version of pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/bucketing.h"
#include "core/checking.h"
#include "core/error.h"
#include "core/scheduling.h"
#include "core/simulation.h"

namespace py = pybind11;
using namespace py::literals;
using ie::core::Bucket;
using ie::core::Param;
using ie::core::Rate;
using ie::core::Simulation;

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

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Host-only core: bucketing. No torch inside.";
    py::register_local_exception_translator(throw_as_value_error);

    // What this build was made for; runtime/extension.py compares it with what it finds.
    m.attr("TORCH_VERSION") = IE_TORCH_VERSION;
    m.attr("HAS_CUDA_KERNELS") = static_cast<bool>(IE_WITH_CUDA);

    py::class_<Param>(m, "Param", "A parameter as bucketing sees it: numel, layer, decayed.")
        .def(py::init<std::int64_t, std::int64_t, bool>(), "numel"_a, "layer"_a, "decayed"_a)
        .def_readonly("numel", &Param::numel)
        .def_readonly("layer", &Param::layer)
        .def_readonly("decayed", &Param::decayed);

    py::class_<Bucket>(m, "Bucket", "Parameters that travel as one flat buffer; counts are elements.")
        .def_readonly("params", &Bucket::params, "Indices of the parameters, in order of placement.")
        .def_readonly("offsets", &Bucket::offsets, "First element of each of params.")
        .def_readonly("numel", &Bucket::numel, "Length, a multiple of 16 * num_shards.")
        .def_readonly("decayed_numel", &Bucket::decayed_numel, "Where weight decay ends.")
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
    m.def("reprint_program", &reprint_program, "text"_a, "Reads and writes a Program. Raises ValueError.");
}

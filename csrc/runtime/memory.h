// What the names in a Program stand for on this rank: persistent buffers, which the caller owns; transient
// buffers, allocated by their first writer; values, which regions return.
//
// Every name has a slot, and a slot is one tensor. Lanes use the table at the same time without a lock: that
// no two touch one slot unordered is what the checker proves of a Program.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/program.h"

namespace ie::runtime {

class Memory {
  public:
    using Slot = std::size_t;
    using Tensors = std::unordered_map<std::string, at::Tensor>;

    // `persistent` has the tensor of every param, pshard and gsum that the Program calls persistent, of the
    // bytes it declares. Here and below: throws ie::Error.
    Memory(const core::Program& program, const Tensors& persistent);

    // The slot of a buffer, or of a value in one micro-batch ("%m0.h0"), that the Program declares.
    Slot slot(const std::string& name) const;

    const at::Tensor& read(Slot slot) const;
    const at::Tensor& target(Slot slot);  // the buffer to write, allocated if it is transient and not there
    void put(Slot slot, at::Tensor value);
    void free(Slot slot);

    at::Device device() const { return param_options_.device(); }

    // Of transient buffers and values: now, and at most since the last reset. A value that shares memory with
    // another counts for itself.
    std::int64_t live_bytes() const { return live_bytes_; }
    std::int64_t peak_bytes() const { return peak_bytes_; }
    void reset_peak() { peak_bytes_ = live_bytes_.load(); }

  private:
    struct Entry {
        explicit Entry(std::string name) : name(std::move(name)) {}

        std::string name;
        at::Tensor tensor;
        bool persistent = false;
        at::TensorOptions options;
        std::int64_t numel = 0;  // of a transient buffer
    };

    Entry& declare(const std::string& name);
    void declare(const core::Buffer& buffer, const Tensors& persistent);
    void count(std::int64_t bytes);

    std::vector<Entry> entries_;
    std::unordered_map<std::string, Slot> slots_;
    at::TensorOptions param_options_;
    std::atomic<std::int64_t> live_bytes_ = 0;
    std::atomic<std::int64_t> peak_bytes_ = 0;
};

}  // namespace ie::runtime

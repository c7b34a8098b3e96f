// A region: a Python callable from tensors to a tuple of tensors, compiled elsewhere. The only place where a
// step calls Python.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/Exceptions.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ie::runtime {

class Region {
  public:
    // id() of the callable, which the caller keeps alive.
    explicit Region(std::int64_t id) : id_(id) {}

    // Throws python_error with what the callable raises; ie::Error if it returns anything but `num_outputs`
    // tensors.
    std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& inputs, std::size_t num_outputs) const;

  private:
    std::int64_t id_;
};

// A line that Python prints below the traceback.
void add_note(const python_error& error, const std::string& note);

}  // namespace ie::runtime

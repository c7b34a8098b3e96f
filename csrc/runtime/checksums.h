// The op internevo::checksums for C++: of rows of a contiguous tensor, int64 [rows].
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace ie::runtime {

inline at::Tensor checksums(const at::Tensor& x, std::int64_t rows) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("internevo::checksums", "")
                               .typed<at::Tensor(const at::Tensor&, std::int64_t)>();
    const std::int64_t word = 4;
    if (static_cast<std::int64_t>(x.nbytes()) % (rows * word) == 0) return op.call(x, rows);
    return x.view({rows, -1}).view(at::kShort).sum(1, false, at::kLong);  // an odd number of bf16
}

}  // namespace ie::runtime

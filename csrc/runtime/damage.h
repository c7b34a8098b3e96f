// What a fault on purpose does to a tensor: a bit of its first element flips, or the element is not a number.
#pragma once

#include <ATen/ATen.h>

#include "core/faults.h"

namespace ie::runtime {

inline void damage(const at::Tensor& flat, const core::Fault& fault) {
    at::Tensor first = flat.flatten().narrow(0, 0, 1);
    if (fault.action == core::FaultAction::kNan) {
        first.fill_(std::numeric_limits<double>::quiet_NaN());
        return;
    }
    const auto bits = first.element_size() == 2 ? at::kShort : at::kInt;
    first.view(bits).bitwise_xor_(at::Scalar(std::int64_t{1} << fault.number));
}

}  // namespace ie::runtime

#include "kernels/exact_sum.h"

#include <algorithm>

namespace ie::kernels {

void ExactSum::add_squares(const float* x, std::int64_t numel) {
    for (std::int64_t first = 0; first < numel; first += kSquareBlock) {
        const std::int64_t last = std::min(first + kSquareBlock, numel);
        double sum = 0;
        for (std::int64_t i = first; i < last; ++i)
            sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        add(sum);
    }
    carry();
}

}  // namespace ie::kernels

#include "kernels/tree_sum.h"

#include <algorithm>

namespace ie::kernels {
namespace {

constexpr std::int64_t kBlock = 512;  // elements; a block of every open sum stays in the first cache
constexpr int kMaxOpen = 32;          // one for each bit of the row number

IE_INLINE float widen(float value) {
    return value;
}

IE_INLINE float widen(BFloat16 value) {
    return to_float(value);
}

IE_INLINE void add(float* sum, const float* other, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) sum[i] += other[i];
}

// Rows are carried like the ones of a binary counter: row r closes as many pairs as r ends in ones.
template <typename T>
IE_INLINE void sum_block(float* out, const T* rows, std::int64_t num_rows, std::int64_t stride,
                         std::int64_t width) {
    float open[kMaxOpen][kBlock];
    int num_open = 0;
    for (std::int64_t row = 0; row < num_rows; ++row) {
        for (std::int64_t i = 0; i < width; ++i) open[num_open][i] = widen(rows[row * stride + i]);
        ++num_open;
        for (std::int64_t pairs = row; pairs & 1; pairs >>= 1, --num_open) {
            add(open[num_open - 2], open[num_open - 1], width);
        }
    }
    for (; num_open > 1; --num_open) add(open[num_open - 2], open[num_open - 1], width);
    std::copy_n(open[0], width, out);
}

template <typename T>
IE_INLINE void sum_rows(float* out, const T* rows, std::int64_t num_rows, std::int64_t numel) {
    for (std::int64_t first = 0; first < numel; first += kBlock) {
        sum_block(out + first, rows + first, num_rows, numel, std::min(kBlock, numel - first));
    }
}

}  // namespace

void tree_sum(float* out, const float* rows, std::int64_t num_rows, std::int64_t numel, InstructionSet set) {
    run<sum_rows<float>>(set, out, rows, num_rows, numel);
}

void tree_sum(float* out, const BFloat16* rows, std::int64_t num_rows, std::int64_t numel,
              InstructionSet set) {
    run<sum_rows<BFloat16>>(set, out, rows, num_rows, numel);
}

}  // namespace ie::kernels

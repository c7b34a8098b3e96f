#include "kernels/checksum.h"

namespace ie::kernels {
namespace {

IE_INLINE void add_words(const std::uint32_t* words, std::int64_t count, std::uint64_t* sum) {
    std::uint64_t total = 0;
    for (std::int64_t i = 0; i < count; ++i) total += words[i];
    *sum = total;
}

}  // namespace

std::uint64_t checksum(const std::uint32_t* words, std::int64_t count, InstructionSet set) {
    std::uint64_t sum = 0;
    run<add_words>(set, words, count, &sum);
    return sum;
}

}  // namespace ie::kernels

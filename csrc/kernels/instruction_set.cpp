#include "kernels/instruction_set.h"

namespace ie::kernels {
namespace {

constexpr InstructionSet kSets[] = {InstructionSet::kBase, InstructionSet::kAvx2, InstructionSet::kAvx512};

int count_supported() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (!__builtin_cpu_supports("avx2")) return 1;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? 3 : 2;
#else
    return 1;
#endif
}

}  // namespace

std::span<const InstructionSet> supported_sets() {
    static const int count = count_supported();
    return std::span(kSets).first(count);
}

}  // namespace ie::kernels

// Host kernels are compiled once for each instruction set, into one binary that runs on every machine of its
// architecture; the machine's best is chosen at run time, from a table.
//
// A kernel is an IE_INLINE loop; run<loop>(set, arguments...) calls its version for `set`. The arithmetic is
// the same in every version and never contracted to a fused multiply-add, so all of them give equal bits.
#pragma once

#include <span>

#define IE_INLINE [[gnu::always_inline]] inline

#if defined(__x86_64__) && defined(__GNUC__)
#define IE_TARGET_AVX2 [[gnu::target("avx2")]]
#define IE_TARGET_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]]
#else
#define IE_TARGET_AVX2
#define IE_TARGET_AVX512
#endif

namespace ie::kernels {

enum class InstructionSet { kBase, kAvx2, kAvx512 };

// What this machine can run, the best one last; only kBase where the compiler's baseline is all there is.
std::span<const InstructionSet> supported_sets();

inline InstructionSet best_set() {
    return supported_sets().back();
}

template <auto loop, typename... Args>
void run_base(Args... args) {
    loop(args...);
}

template <auto loop, typename... Args>
IE_TARGET_AVX2 void run_avx2(Args... args) {
    loop(args...);
}

template <auto loop, typename... Args>
IE_TARGET_AVX512 void run_avx512(Args... args) {
    loop(args...);
}

template <auto loop, typename... Args>
void run(InstructionSet set, Args... args) {
    using Version = void (*)(Args...);
    static constexpr Version versions[] = {run_base<loop, Args...>, run_avx2<loop, Args...>,
                                           run_avx512<loop, Args...>};
    versions[static_cast<int>(set)](args...);
}

}  // namespace ie::kernels

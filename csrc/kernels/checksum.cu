#include <algorithm>

#include "kernels/checksum.h"
#include "kernels/cuda_check.h"

namespace ie::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWordsOfThread = 16;        // at least, before a block is worth starting
constexpr std::int64_t kMaxBlocks = 512;  // of a row: enough to keep every memory channel busy
constexpr unsigned kAll = 0xFFFFFFFFu;

using Sum = unsigned long long;  // what atomicAdd takes

// A row is a column of blocks; its threads stride over it together, so their loads are coalesced.
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(const std::uint32_t* words, std::int64_t count, Sum* sums) {
    const std::uint32_t* row = words + blockIdx.y * count;
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    Sum sum = 0;
#pragma unroll 4
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
         i += stride)
        sum += row[i];
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAll, sum, half);
    if (threadIdx.x % kWarp == 0) atomicAdd(sums + blockIdx.y, sum);
}

}  // namespace

void checksum_cuda(const std::uint32_t* words, std::int64_t rows, std::int64_t count, std::uint64_t* sums,
                   Stream stream) {
    if (rows == 0 || count == 0) return;
    const std::int64_t wanted = (count + kThreads * kWordsOfThread - 1) / (kThreads * kWordsOfThread);
    const dim3 grid(static_cast<unsigned>(std::min(wanted, kMaxBlocks)), static_cast<unsigned>(rows));
    checksum_kernel<<<grid, kThreads, 0, stream>>>(words, count, reinterpret_cast<Sum*>(sums));
    check_launch("checksum");
}

}  // namespace ie::kernels

// Checksum of a flat buffer: the sum of its 32-bit words, modulo 2^64. A change of bits in one word always
// shows, and so do changes of several unless they cancel out. Sums of slices add up to the sum of the whole,
// whatever the cut, so equal states have equal checksums under every plan.
//
// Memory-bound: reads the buffer once. Integer sums have no order, so host and device agree.
#pragma once

#include <cstdint>

#include "kernels/host_device.h"
#include "kernels/instruction_set.h"

namespace ie::kernels {

// Host.
std::uint64_t checksum(const std::uint32_t* words, std::int64_t count, InstructionSet set = best_set());

// Device: rows of `count` words each, one after the other, into sums[rows], which are in device memory and
// start at 0; queued on `stream`.
void checksum_cuda(const std::uint32_t* words, std::int64_t rows, std::int64_t count, std::uint64_t* sums,
                   Stream stream);

}  // namespace ie::kernels

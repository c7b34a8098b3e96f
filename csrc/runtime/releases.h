// When the memory of what a Program frees goes back to its allocator.
//
// On threads that is the moment of the `free`: by then every user has ended. On streams users are only queued
// by then. A caching allocator gives a block back to the stream that allocated it, at once and without
// waiting, so whatever that stream queues next may overwrite a block that another stream still reads. Hence
// memory goes back later: with the first instruction of its home, the lane that allocated it, whose stream
// comes after all its users. Where the Program asks for no such wait (gradients that another lane adds up),
// the home waits for the oldest users once more than window_bytes have been freed and not gone back. So
// memory stays within a window of what threads need, although the host queues far ahead of the device.
//
// All of it is known beforehand. (Tensor.record_stream would hold every shared block until the device has
// caught up with the host: most of a step.) Users are counted by name: a value that a region returns must not
// be a view of one that another lane frees.
#pragma once

#include "core/program.h"

namespace ie::runtime {

struct Releases {
    // For each instruction the names whose memory goes back just before it; then those for the end of the
    // step, when all streams have joined.
    std::vector<core::Names> names;
    // For each instruction the earlier ones that it waits for, besides `after`.
    std::vector<std::vector<std::size_t>> waits;
};

Releases releases_on_threads(const core::Program& program);

// Of instructions that are queued in the order of their numbers. Throws ie::Error for a name that is born
// again in another lane before its memory could go back.
Releases releases_on_streams(const core::Program& program);

}  // namespace ie::runtime

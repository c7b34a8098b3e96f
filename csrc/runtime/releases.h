// When the memory of what a Program frees goes back to its allocator.
//
// On threads that is the moment of the `free`: by then every user has ended. On streams users are only queued
// by then. A caching allocator gives a block back to the stream that allocated it, at once and without
// waiting, so whatever that stream queues next may overwrite a block that another stream still reads. Hence
// memory goes back later: with the first instruction of its home, the lane that allocated it, that the
// Program orders after all its users. That is static, costs no event, and keeps the Program's window of
// bytes, because what enters the window is ordered after what has left it. (Tensor.record_stream would hold
// every shared block until the device has caught up with the host: most of a step.)
//
// This counts users by name: a value that a region returns must not be a view of one that another lane frees.
#pragma once

#include "core/program.h"

namespace ie::runtime {

// For each instruction the names whose memory goes back just before it; then those for the end of the step,
// when all streams have joined.
using Releases = std::vector<core::Names>;

Releases releases_on_threads(const core::Program& program);

// Throws ie::Error for a name that is born again in another lane before its memory could go back.
Releases releases_on_streams(const core::Program& program);

}  // namespace ie::runtime

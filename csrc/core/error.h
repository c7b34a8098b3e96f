// The one error of our C++ code, and the one way to throw it.
//
// IE_CHECK(cond, parts...) throws ie::Error with the parts joined by operator<<. A message says what was
// found, with its numbers, and what would have been right:
//
//     IE_CHECK(num_shards > 0, "num_shards=", num_shards, " must be positive");
//
// Python sees a ValueError from _core and a RuntimeError from torch ops and classes.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ie {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw Error(message.str());
}

}  // namespace ie

#define IE_CHECK(cond, ...)          \
    do {                             \
        if (!(cond)) {               \
            ::ie::fail(__VA_ARGS__); \
        }                            \
    } while (false)

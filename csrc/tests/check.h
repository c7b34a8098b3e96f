// The least a test program needs: EXPECT prints what failed and counts it in `failures`.
#pragma once

#include <cstdio>
#include <string>

namespace ie::tests {

inline int failures = 0;

inline void expect(bool ok, const char* what, const char* file, int line) {
    if (ok) return;
    std::printf("%s:%d: not true: %s\n", file, line, what);
    ++failures;
}

// The message of the ie::Error that `act` throws; "" if it throws none.
template <typename Error, typename Act>
std::string message_of(Act act) {
    try {
        act();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace ie::tests

#define EXPECT(...) ::ie::tests::expect(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

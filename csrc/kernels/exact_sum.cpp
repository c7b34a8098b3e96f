#include "kernels/exact_sum.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace ie::kernels {
namespace {

constexpr int kNumbers = ExactSum::kWords - 1;
constexpr int kNotFinite = ExactSum::kWords - 1;
constexpr int kPayload = 32;
constexpr std::int64_t kMask = 0xffffffff;

void carry_words(std::int64_t* words) {
    for (int w = 0; w + 1 < kNumbers; ++w) {
        words[w + 1] += words[w] >> kPayload;  // rounds down, so every word but the last ends in [0, 2^32)
        words[w] &= kMask;
    }
}

// Carried words that are not negative. The three highest hold more bits than a double; that something is left
// below them matters only as one more bit. Rounded once: what could be denormal is short enough to be exact.
double round(const std::int64_t* words) {
    int top = kNumbers - 1;
    while (top > 2 && words[top] == 0) --top;
    unsigned __int128 bits = 0;
    for (int w = top; w > top - 3; --w) bits = bits << kPayload | static_cast<std::uint64_t>(words[w]);
    if (std::any_of(words, words + top - 2, [](std::int64_t word) { return word != 0; })) bits |= 1;
    return std::ldexp(static_cast<double>(bits), kPayload * (top - 2) - 1074);
}

}  // namespace

void ExactSum::add(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
    if (exponent == 0x7ff) {
        ++words_[kNotFinite];
        return;
    }
    // value = sign * mantissa * 2^(place - 1074); a denormal has no hidden bit, and the exponent of 1
    const std::uint64_t mantissa = (bits & ((1ull << 52) - 1)) | std::uint64_t{exponent > 0} << 52;
    const int place = std::max(exponent, 1) - 1;
    const std::int64_t sign = bits >> 63 ? -1 : 1;
    const std::uint64_t low = mantissa << place % kPayload;
    const std::uint64_t high = place % kPayload ? mantissa >> (64 - place % kPayload) : 0;
    std::int64_t* word = words_ + place / kPayload;
    word[0] += sign * static_cast<std::int64_t>(low & kMask);
    word[1] += sign * static_cast<std::int64_t>(low >> kPayload);
    word[2] += sign * static_cast<std::int64_t>(high);
}

void ExactSum::add_squares(const float* x, std::int64_t numel) {
    for (std::int64_t first = 0; first < numel; first += kSquareBlock) {
        const std::int64_t last = std::min(first + kSquareBlock, numel);
        double sum = 0;
        for (std::int64_t i = first; i < last; ++i)
            sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        add(sum);
    }
    carry();
}

void ExactSum::carry() {
    carry_words(words_);
}

double ExactSum::value() const {
    if (words_[kNotFinite] != 0) return std::numeric_limits<double>::quiet_NaN();
    std::array<std::int64_t, kNumbers> words;
    std::copy_n(words_, kNumbers, words.begin());
    carry_words(words.data());
    const bool negative = words.back() < 0;
    if (negative) {
        for (std::int64_t& word : words) word = -word;
        carry_words(words.data());
    }
    const double magnitude = round(words.data());
    return negative ? -magnitude : magnitude;
}

}  // namespace ie::kernels

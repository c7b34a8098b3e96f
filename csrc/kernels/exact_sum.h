// A sum of doubles whose bits do not depend on the order of the additions, nor on who adds: the integers of
// two ranks can be added element by element, in any order, and still hold the exact sum.
//
// The sum is a fixed-point number wide enough for every double: word w counts units of 2^(32 w - 1074), and
// words are 64 bits for 32 of payload, so that carries can wait. The last word counts what was not finite.
//
// ExactSum is a view: the caller owns kWords integers, zeroed before the first use. Host and device run the
// same integer arithmetic, so they agree in every bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace ie::kernels {

class ExactSum {
  public:
    static constexpr int kWords = 68;

    IE_HOST_DEVICE explicit ExactSum(std::int64_t* words) : words_(words) {}

    // What one double adds to three neighbouring words.
    struct Term {
        int word;
        std::int64_t parts[3];
    };
    IE_HOST_DEVICE static Term term(double value);

    IE_HOST_DEVICE void add(double value);

    // Spends the carries. Needed once in 2^31 additions, and before the words of ranks are added.
    IE_HOST_DEVICE void carry();

    // The sum, rounded once; NaN if something was not finite. Spends the carries first.
    IE_HOST_DEVICE double value();

    // Squares of a flat fp32 buffer are added in double, block by block of kSquareBlock elements: whoever
    // owns whole blocks adds the same numbers. Memory-bound: reads 4 bytes per element.
    static constexpr std::int64_t kSquareBlock = 16;
    void add_squares(const float* x, std::int64_t numel);

  private:
    static constexpr int kTop = kWords - 2;  // the highest word of the number, and the only one with a sign
    static constexpr int kNotFinite = kWords - 1;
    static constexpr int kPayload = 32;
    static constexpr std::int64_t kMask = 0xffffffff;

    IE_HOST_DEVICE int lowest() const;
    IE_HOST_DEVICE std::uint64_t digit(int word, int lowest) const;

    std::int64_t* words_;
};

IE_HOST_DEVICE ExactSum::Term ExactSum::term(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
    if (exponent == 0x7ff) return {kNotFinite - 2, {0, 0, 1}};
    // value = sign * mantissa * 2^(place - 1074); a denormal has no hidden bit, and the exponent of 1
    const bool is_normal = exponent > 0;
    const std::uint64_t mantissa = (bits & ((1ull << 52) - 1)) | std::uint64_t{is_normal} << 52;
    const int place = is_normal ? exponent - 1 : 0, shift = place % kPayload;
    const std::int64_t sign = bits >> 63 ? -1 : 1;
    const std::uint64_t low = mantissa << shift;
    const std::uint64_t high = shift ? mantissa >> (64 - shift) : 0;
    return {place / kPayload,
            {sign * static_cast<std::int64_t>(low & kMask), sign * static_cast<std::int64_t>(low >> kPayload),
             sign * static_cast<std::int64_t>(high)}};
}

IE_HOST_DEVICE void ExactSum::add(double value) {
    const Term term = ExactSum::term(value);
    words_[term.word] += term.parts[0];
    words_[term.word + 1] += term.parts[1];
    words_[term.word + 2] += term.parts[2];
}

IE_HOST_DEVICE void ExactSum::carry() {
    for (int w = 0; w < kTop; ++w) {
        words_[w + 1] += words_[w] >> kPayload;  // rounds down, so every word but the top ends in [0, 2^32)
        words_[w] &= kMask;
    }
}

IE_HOST_DEVICE int ExactSum::lowest() const {
    int word = 0;
    while (word < kTop && words_[word] == 0) ++word;
    return word;
}

// A digit of the magnitude, of carried words. A negative number is subtracted from zero: the lowest word that
// is not zero borrows, and with it every word above.
IE_HOST_DEVICE std::uint64_t ExactSum::digit(int word, int lowest) const {
    if (words_[kTop] >= 0 || word < lowest) return static_cast<std::uint64_t>(words_[word]);
    const std::int64_t borrowed = word == kTop ? 0 : kMask + 1;
    return static_cast<std::uint64_t>(borrowed - words_[word] - (word > lowest));
}

// The three highest digits hold more bits than a double. The upper 64 of them are kept; that something is
// left below matters only as one more bit. What could be denormal is short enough to be exact.
IE_HOST_DEVICE double ExactSum::value() {
    if (words_[kNotFinite] != 0) return NAN;
    carry();
    const int lowest = this->lowest();
    int top = kTop;
    while (top > 2 && digit(top, lowest) == 0) --top;
    const std::uint64_t high = digit(top, lowest) << kPayload | digit(top - 1, lowest);
    const std::uint64_t low = digit(top - 2, lowest);
    int shift = kPayload;  // how far the kept bits lie above the lowest of the three digits
    while (shift > 0 && high >> (31 + shift) == 0) --shift;
    std::uint64_t kept = high << (kPayload - shift) | low >> shift;
    if (lowest < top - 2 || (low & ((1ull << shift) - 1)) != 0) kept |= 1;
    const double magnitude = std::ldexp(static_cast<double>(kept), shift + kPayload * (top - 2) - 1074);
    return words_[kTop] < 0 ? -magnitude : magnitude;
}

// Device, queued on `stream`; everything is device memory. Words end carried.
void exact_add_cuda(std::int64_t* words, const double* values, std::int64_t count, Stream stream);
void exact_add_squares_cuda(std::int64_t* words, const float* x, std::int64_t numel, Stream stream);

// Device: the values of `count` sums, which lie side by side.
void exact_values_cuda(std::int64_t* words, double* values, std::int64_t count, Stream stream);

}  // namespace ie::kernels

// A sum of doubles whose bits do not depend on the order of the additions, nor on who adds: the integers of
// two ranks can be added element by element, in any order, and still hold the exact sum.
//
// The sum is a fixed-point number wide enough for every double: word w counts units of 2^(32 w - 1074), and
// words are 64 bits for 32 of payload, so that carries can wait. The last word counts what was not finite.
//
// ExactSum is a view: the caller owns kWords integers, zeroed before the first use.
#pragma once

#include <cstdint>

namespace ie::kernels {

class ExactSum {
  public:
    static constexpr int kWords = 68;

    explicit ExactSum(std::int64_t* words) : words_(words) {}

    void add(double value);

    // Adds the squares of a flat fp32 buffer in double, block by block of kSquareBlock elements: whoever owns
    // whole blocks adds the same numbers. Memory-bound: reads 4 bytes per element.
    static constexpr std::int64_t kSquareBlock = 16;
    void add_squares(const float* x, std::int64_t numel);

    // Spends the carries. Needed once in 2^31 additions, and before the words of ranks are added.
    void carry();

    // The sum, rounded once; NaN if something was not finite.
    double value() const;

  private:
    std::int64_t* words_;
};

}  // namespace ie::kernels

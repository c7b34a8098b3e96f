// ExactSum: exact where double is not, whatever the order and whoever adds.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/exact_sum.h"
#include "tests/check.h"

using ie::kernels::ExactSum;

namespace {

struct Sum {
    std::vector<std::int64_t> words = std::vector<std::int64_t>(ExactSum::kWords);

    ExactSum view() { return ExactSum(words.data()); }
    double of(const std::vector<double>& values) {
        for (const double value : values) view().add(value);
        return view().value();
    }
};

void sums_are_exact_where_doubles_lose_everything() {
    EXPECT(Sum().of({1e300, 1.0, -1e300}) == 1.0);
    EXPECT(Sum().of({1e300, 5e-324, -1e300}) == 5e-324);
    EXPECT(Sum().of({-1.0, -1e-30, 1.0}) == -1e-30);
    EXPECT(Sum().of({}) == 0.0);
}

void the_sum_is_rounded_once_and_to_even() {
    const double half = std::ldexp(1.0, -53), tiny = std::ldexp(1.0, -900);
    EXPECT(Sum().of({1.0, half}) == 1.0);
    EXPECT(Sum().of({1.0, half, tiny}) == 1.0 + 2 * half);
    EXPECT(Sum().of({1.0 + 2 * half, half}) == 1.0 + 4 * half);
    EXPECT(Sum().of({1.0 + 2 * half, half, -tiny}) == 1.0 + 2 * half);
    EXPECT(Sum().of({-1.0, -half, -tiny}) == -1.0 - 2 * half);
}

void one_number_comes_back_unchanged() {
    const double largest = std::numeric_limits<double>::max();
    for (const double value :
         {1.0, -1.0, 0.1, -1e-300, 5e-324, -5e-324, 2.2250738585072014e-308, largest, -largest}) {
        EXPECT(Sum().of({value}) == value);
    }
}

void order_and_number_of_ranks_do_not_matter() {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> values(3000);
    for (double& value : values) value = std::ldexp(normal(random), static_cast<int>(random() % 200) - 100);
    const double expected = Sum().of(values);
    for (int ranks : {1, 2, 5}) {
        std::shuffle(values.begin(), values.end(), random);
        Sum total;
        for (int rank = 0; rank < ranks; ++rank) {
            Sum part;
            for (std::size_t i = rank; i < values.size(); i += ranks) part.view().add(values[i]);
            part.view().carry();
            for (int w = 0; w < ExactSum::kWords; ++w) total.words[w] += part.words[w];
        }
        EXPECT(total.view().value() == expected);
    }
}

void what_is_not_finite_is_not_lost() {
    const double infinity = std::numeric_limits<double>::infinity();
    EXPECT(std::isnan(Sum().of({1.0, infinity, -infinity})));
    EXPECT(std::isnan(Sum().of({std::nan(""), 1.0})));
}

void squares_of_slices_add_up_to_the_squares_of_the_whole() {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<float> x(16 * 60 + 5);
    for (float& value : x) value = normal(random);
    Sum whole, slices;
    whole.view().add_squares(x.data(), std::ssize(x));
    for (std::int64_t first = 0; first < std::ssize(x); first += 48) {
        slices.view().add_squares(x.data() + first, std::min<std::int64_t>(48, std::ssize(x) - first));
    }
    double expected = 0;
    for (const float value : x) expected += static_cast<double>(value) * value;
    EXPECT(whole.view().value() == slices.view().value());
    EXPECT(std::abs(whole.view().value() - expected) < 1e-12 * expected);
}

}  // namespace

int main() {
    sums_are_exact_where_doubles_lose_everything();
    the_sum_is_rounded_once_and_to_even();
    one_number_comes_back_unchanged();
    order_and_number_of_ranks_do_not_matter();
    what_is_not_finite_is_not_lost();
    squares_of_slices_add_up_to_the_squares_of_the_whole();
    return ie::tests::failures != 0;
}

// Kernels on the host: equal bits for every instruction set and every cut into ranges, at the edges of
// buffers that the sanitizers guard. How close they are to torch is tested from Python.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/adamw.h"
#include "kernels/checksum.h"
#include "kernels/square_sum.h"
#include "kernels/tree_sum.h"
#include "tests/check.h"

using namespace ie::kernels;

namespace {

constexpr std::int64_t kSizes[] = {0, 1, 15, 17, 127, 129, 1003, 4096, 4097, 3 * 4096 + 131};

std::vector<float> normal(std::int64_t numel, int seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> values(numel);
    for (float& value : values) value = distribution(random);
    return values;
}

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct State {
    explicit State(std::int64_t numel)
        : master(normal(numel, 1)),
          exp_avg(normal(numel, 2)),
          exp_avg_sq(normal(numel, 3)),
          grad(normal(numel, 4)),
          param(numel),
          param_bf16(numel) {
        for (float& v : exp_avg_sq) v = v * v;
    }

    void update(ParamOut out, std::int64_t decayed_numel, std::int64_t cut, InstructionSet set) {
        const auto numel = std::ssize(master);
        void* const outs[] = {nullptr, param.data(), param_bf16.data()};
        const AdamWBuffers buffers{
            master.data(), exp_avg.data(), exp_avg_sq.data(), grad.data(), outs[static_cast<int>(out)],
            out,           numel,          decayed_numel};
        const AdamWStep step = make_adamw_step({1e-3, 0.9, 0.95, 1e-8, 0.1, 3});
        adamw_range(buffers, step, 0.5f, 0, cut, set);
        adamw_range(buffers, step, 0.5f, cut, numel, set);
    }

    std::vector<float> master, exp_avg, exp_avg_sq, grad, param;
    std::vector<BFloat16> param_bf16;
};

void adamw_has_equal_bits_for_every_instruction_set_and_cut() {
    for (std::int64_t numel : kSizes) {
        for (ParamOut out : {ParamOut::kNone, ParamOut::kFp32, ParamOut::kBf16}) {
            State expected(numel);
            expected.update(out, numel / 3, 0, InstructionSet::kBase);
            for (InstructionSet set : supported_sets()) {
                State state(numel);
                state.update(out, numel / 3, numel / 2, set);
                EXPECT(equal_bits(state.master, expected.master));
                EXPECT(equal_bits(state.exp_avg, expected.exp_avg));
                EXPECT(equal_bits(state.exp_avg_sq, expected.exp_avg_sq));
                EXPECT(equal_bits(state.param, expected.param));
                for (std::int64_t i = 0; i < numel; ++i) {
                    EXPECT(state.param_bf16[i].bits == expected.param_bf16[i].bits);
                }
            }
        }
    }
}

void adamw_element_is_the_formula_in_double() {
    const AdamWSettings s{1e-3, 0.9, 0.95, 1e-8, 0.1, 7};
    float m = 0.3f, v = 0.2f;
    const AdamWStep step = make_adamw_step(s);
    const float w = adamw_element(1.5f, m, v, -0.7f, step.decay, step);
    const double m64 = 0.9 * 0.3 + 0.1 * -0.7;
    const double v64 = 0.95 * 0.2 + 0.05 * 0.49;
    const double root = std::sqrt(v64 / (1 - std::pow(0.95, 7))) + 1e-8;
    const double w64 = 1.5 * (1 - 1e-3 * 0.1) - 1e-3 * m64 / (1 - std::pow(0.9, 7)) / root;
    EXPECT(std::abs(m - m64) < 1e-7 && std::abs(v - v64) < 1e-7 && std::abs(w - w64) < 3e-7);
}

void zeros_stay_zero() {
    float m = 0, v = 0;
    const AdamWStep step = make_adamw_step({1e-3, 0.9, 0.95, 1e-8, 0.1, 1});
    EXPECT(adamw_element(0, m, v, 0, step.decay, step) == 0 && m == 0 && v == 0);
}

void bfloat16_rounds_to_nearest_even() {
    EXPECT(to_bfloat16(1.0f).bits == 0x3F80);
    EXPECT(to_bfloat16(1.0f + 1.0f / 256).bits == 0x3F80);  // a tie, to the even neighbour below
    EXPECT(to_bfloat16(1.0f + 3.0f / 256).bits == 0x3F82);  // a tie, to the even neighbour above
    EXPECT(to_bfloat16(std::numeric_limits<float>::max()).bits == 0x7F80);
    EXPECT(to_bfloat16(std::numeric_limits<float>::quiet_NaN()).bits == 0x7FC0);
}

// The contract's order, written down without care for speed.
double slow_sum(const std::vector<double>& terms) {
    double lanes[kSumLanes] = {};
    for (std::size_t i = 0; i < terms.size(); ++i) lanes[i % kSumLanes] += terms[i];
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    return lanes[0];
}

void square_sum_follows_its_order_for_every_instruction_set() {
    for (std::int64_t numel : kSizes) {
        const std::vector<float> x = normal(numel, 5);
        std::vector<double> expected;
        for (std::int64_t first = 0; first < numel; first += kSumBlock) {
            std::vector<double> squares(x.begin() + first, x.begin() + std::min(first + kSumBlock, numel));
            for (double& square : squares) square *= square;
            expected.push_back(slow_sum(squares));
        }
        for (InstructionSet set : supported_sets()) {
            std::vector<double> partials(num_blocks(numel));
            square_sum_blocks(x.data(), numel, partials.data(), 0, num_blocks(numel), set);
            EXPECT(partials == expected);
            EXPECT(sum_partials(partials.data(), num_blocks(numel)) == slow_sum(expected));
        }
    }
}

// Pairs, then pairs of pairs.
float slow_tree(std::vector<float> row) {
    while (row.size() > 1) {
        std::vector<float> sums;
        for (std::size_t i = 0; i < row.size(); i += 2)
            sums.push_back(i + 1 < row.size() ? row[i] + row[i + 1] : row[i]);
        row = sums;
    }
    return row[0];
}

template <typename T>
void check_tree_sum(const std::vector<T>& rows, const std::vector<float>& wide, std::int64_t num_rows,
                    std::int64_t numel) {
    std::vector<float> expected(numel);
    for (std::int64_t i = 0; i < numel; ++i) {
        std::vector<float> column;
        for (std::int64_t row = 0; row < num_rows; ++row) column.push_back(wide[row * numel + i]);
        expected[i] = slow_tree(column);
    }
    for (InstructionSet set : supported_sets()) {
        std::vector<float> sum(numel);
        tree_sum(sum.data(), rows.data(), num_rows, numel, set);
        EXPECT(equal_bits(sum, expected));
    }
}

void tree_sum_adds_in_one_tree_for_every_number_of_rows() {
    for (std::int64_t numel : {0, 1, 17, 511, 513, 1500}) {
        for (std::int64_t num_rows = 1; num_rows <= 9; ++num_rows) {
            const std::vector<float> rows = normal(num_rows * numel, static_cast<int>(num_rows));
            check_tree_sum(rows, rows, num_rows, numel);
            std::vector<BFloat16> short_rows;
            std::vector<float> wide;
            for (float value : rows) short_rows.push_back(to_bfloat16(value));
            for (BFloat16 value : short_rows) wide.push_back(to_float(value));
            check_tree_sum(short_rows, wide, num_rows, numel);
        }
    }
}

void checksums_add_up_over_any_cut_and_see_every_bit() {
    for (std::int64_t numel : kSizes) {
        std::vector<std::uint32_t> words(numel);
        std::mt19937 random(numel);
        std::uint64_t expected = 0;
        for (std::uint32_t& word : words) expected += word = random();
        for (InstructionSet set : supported_sets()) {
            EXPECT(checksum(words.data(), numel, set) == expected);
            const std::int64_t cut = numel / 3;
            EXPECT(checksum(words.data(), cut, set) + checksum(words.data() + cut, numel - cut, set) ==
                   expected);
            for (int bit = 0; bit < 32 && numel > 0; ++bit) {
                std::uint32_t& word = words[random() % numel];
                word ^= 1u << bit;
                EXPECT(checksum(words.data(), numel, set) != expected);
                word ^= 1u << bit;
            }
        }
    }
}

}  // namespace

int main() {
    adamw_has_equal_bits_for_every_instruction_set_and_cut();
    adamw_element_is_the_formula_in_double();
    zeros_stay_zero();
    bfloat16_rounds_to_nearest_even();
    square_sum_follows_its_order_for_every_instruction_set();
    tree_sum_adds_in_one_tree_for_every_number_of_rows();
    checksums_add_up_over_any_cut_and_see_every_bit();
    std::printf("instruction sets tested: %zu\n", supported_sets().size());
    return ie::tests::failures > 0;
}

// make_buckets: what each sentence of its contract promises.
#include <algorithm>
#include <random>

#include "core/bucketing.h"
#include "core/error.h"
#include "tests/check.h"

using ie::core::Bucket;
using ie::core::make_buckets;
using ie::core::Param;
using Ints = std::vector<std::int64_t>;

namespace {

void layers_are_merged_from_the_last_one_backwards() {
    const std::vector<Param> params = {
        {16, 0, true}, {16, 1, true}, {16, 1, true}, {16, 2, true}, {16, 3, true}};
    const auto buckets = make_buckets(params, 128, 1);  // two parameters
    EXPECT(buckets.size() == 3);
    EXPECT(buckets[0].params == Ints{3, 4});
    EXPECT(buckets[1].params == Ints{1, 2});
    EXPECT(buckets[2].params == Ints{0});
}

void a_layer_above_the_target_is_split_between_parameters() {
    const std::vector<Param> params = {{16, 0, true}, {16, 1, true}, {100, 1, true}, {16, 1, true}};
    const auto buckets = make_buckets(params, 128, 1);
    EXPECT(buckets.size() == 3);
    EXPECT(buckets[0].params == Ints{3});
    EXPECT(buckets[1].params == Ints{2});  // above the target all by itself
    EXPECT(buckets[2].params == Ints{0, 1});
}

void decayed_parameters_come_first_in_a_bucket() {
    const std::vector<Param> params = {{5, 0, false}, {20, 0, true}, {7, 1, false}, {3, 1, true}};
    const auto buckets = make_buckets(params, 1 << 20, 1);
    EXPECT(buckets.size() == 1);
    EXPECT(buckets[0].params == Ints{1, 3, 0, 2});
    EXPECT(buckets[0].offsets == Ints{0, 32, 48, 64});
    EXPECT(buckets[0].decayed_numel == 48);
    EXPECT(buckets[0].numel == 80);
}

void shards_are_equal_and_aligned() {
    for (std::int64_t num_shards : {1, 2, 3, 8}) {
        const auto buckets = make_buckets({{5, 0, true}, {33, 0, false}}, 1 << 20, num_shards);
        EXPECT(buckets[0].numel % (16 * num_shards) == 0);
        EXPECT(buckets[0].numel - 64 < 16 * num_shards);  // and no longer than that needs
    }
}

void frozen_parameters_come_last_and_apart() {
    const std::vector<Param> params = {
        {16, 0, true, false}, {16, 0, true}, {16, 1, true, false}, {16, 1, true}, {16, 2, true, false}};
    const auto buckets = make_buckets(params, 128, 1);  // two parameters
    EXPECT(buckets.size() == 3);
    EXPECT(buckets[0].params == Ints({1, 3}) && buckets[0].trained);
    EXPECT(buckets[1].params == Ints({2, 4}) && !buckets[1].trained);
    EXPECT(buckets[2].params == Ints{0} && !buckets[2].trained);
}

// Any model: each parameter is placed once, aligned, without overlap, in a bucket within the target.
void every_parameter_has_its_place() {
    std::mt19937 random(1);
    std::vector<Param> params;
    for (int i = 0; i < 300; ++i)
        params.push_back(
            {std::uniform_int_distribution<std::int64_t>(1, 2000)(random), i / 7, random() % 2 == 0});
    constexpr std::int64_t target_bytes = 16000;
    Ints seen;
    for (const Bucket& bucket : make_buckets(params, target_bytes, 4)) {
        std::int64_t end = 0;
        for (std::size_t i = 0; i < bucket.params.size(); ++i) {
            const Param& param = params[bucket.params[i]];
            EXPECT(bucket.offsets[i] % 16 == 0 && bucket.offsets[i] >= end);
            EXPECT(param.decayed == (bucket.offsets[i] < bucket.decayed_numel));
            end = bucket.offsets[i] + param.numel;
        }
        EXPECT(end <= bucket.numel);
        EXPECT(bucket.params.size() == 1 || 4 * end <= target_bytes);
        seen.insert(seen.end(), bucket.params.begin(), bucket.params.end());
    }
    std::sort(seen.begin(), seen.end());
    EXPECT(seen.size() == params.size() && std::adjacent_find(seen.begin(), seen.end()) == seen.end());
}

void sizes_that_make_no_sense_are_named() {
    const auto message = [](const std::vector<Param>& params, std::int64_t bytes, std::int64_t shards) {
        return ie::tests::message_of<ie::Error>([&] { make_buckets(params, bytes, shards); });
    };
    EXPECT(message({}, 0, 1) == "target_bytes=0 must be positive");
    EXPECT(message({}, 1, -2) == "num_shards=-2 must be positive");
    EXPECT(message({{0, 0, true}}, 1, 1) == "parameter 0 has numel=0; it must be positive");
    EXPECT(message({{1, 2, true}, {1, 1, true}}, 1, 1).find("give parameters in forward order") !=
           std::string::npos);
}

}  // namespace

int main() {
    layers_are_merged_from_the_last_one_backwards();
    a_layer_above_the_target_is_split_between_parameters();
    decayed_parameters_come_first_in_a_bucket();
    frozen_parameters_come_last_and_apart();
    shards_are_equal_and_aligned();
    every_parameter_has_its_place();
    sizes_that_make_no_sense_are_named();
    return ie::tests::failures > 0;
}

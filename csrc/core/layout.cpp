#include "core/layout.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <unordered_set>

#include "core/error.h"

namespace ie::core {
namespace {

constexpr std::int64_t kGradBytes = 4;     // fp32
constexpr std::int64_t kSquaresBytes = 8;  // fp64
constexpr std::int64_t kTotalsNumel = kNumTotals * kWordsOfTotal;

bool is_power_of_two(std::int64_t number) {
    return std::has_single_bit(static_cast<std::uint64_t>(number));
}

// Each rank keeps one of `size` equal slices of n bytes and sends the others.
std::int64_t sent(std::int64_t bytes, std::int64_t size) {
    return bytes - bytes / size;
}

// A reduce-scatter and an all-gather of slices that are equal, so the last one may be padded.
std::int64_t sent_by_all_reduce(std::int64_t numel, std::int64_t element_bytes, std::int64_t size) {
    return 2 * (size - 1) * ((numel + size - 1) / size) * element_bytes;
}

}  // namespace

std::string name_in(const char* what, std::int64_t bucket) {
    return std::string(what).append("[").append(std::to_string(bucket)).append("]");
}

std::string in_micro_batch(const std::string& value, std::int64_t micro_batch) {
    return std::string("%m").append(std::to_string(micro_batch)).append(".").append(value, 1);
}

Layout::Layout(const Program& program)
    : program_(program),
      params_(count(State::kP)),
      grads_(count(State::kG)),
      shards_(count(State::kOS)),
      num_trained_(std::ranges::count_if(program.buckets, &FlatBucket::trained)) {
    IE_CHECK(std::ranges::is_partitioned(program.buckets, &FlatBucket::trained),
             "a frozen bucket stands before a trained one");
    IE_CHECK(program.micro_batches > 0 && program.param_bytes > 0 && program.wire_bytes > 0,
             "micro_batches=", program.micro_batches, ", param_bytes=", program.param_bytes,
             " and wire_bytes=", program.wire_bytes, " must be positive");
    IE_CHECK(program.mode != Mode::kInvariant ||
                 (is_power_of_two(program.world) && is_power_of_two(program.micro_batches)),
             "mode=invariant needs powers of two, not world=", program.world,
             " and micro_batches=", program.micro_batches);
    check_levels();
    check_names();
}

std::int64_t Layout::count(State last) const {
    return std::ranges::count_if(program_.levels, [&](const Level& level) { return level.state <= last; });
}

void Layout::check_levels() const {
    std::int64_t stride = 1;
    State state = State::kP;
    std::int64_t number = 0;
    for (const Level& level : program_.levels) {
        const std::string index = std::to_string(number++);
        IE_CHECK(level.name.ends_with(index) &&
                     level.name.find_first_of("0123456789") + index.size() == level.name.size(),
                 "level ", level.name, " must have the number ", index);
        IE_CHECK(level.state >= state, "level ", level.name, " comes after one of a later state");
        IE_CHECK(level.size > 1 && level.stride == stride, "level ", level.name, " has size=", level.size,
                 " and stride=", level.stride, "; the levels before it make up ", stride, " ranks");
        stride *= level.size;
        state = level.state;
    }
    IE_CHECK(stride == program_.world, "the levels make up ", stride, " ranks, not world=", program_.world);
    const std::int64_t slices = num_slices(shards_);
    for (const FlatBucket& bucket : program_.buckets) {
        IE_CHECK(bucket.numel > 0 && bucket.numel % slices == 0, "a bucket of ", bucket.numel,
                 " elements can't be cut into ", slices, " equal slices");
    }
}

// Values are declared and written by one call at most; buckets exist; a gradient belongs to one bucket.
void Layout::check_names() const {
    IE_CHECK(!program_.calls.empty(), "a Program needs at least one call");
    std::unordered_set<std::string> values, written, packed, calls;
    for (const Value& value : program_.values) {
        IE_CHECK(value.name.starts_with('%') && values.insert(value.name).second, "value ", value.name,
                 " is declared twice, or does not start with %");
    }
    for (const Call& call : program_.calls) {
        IE_CHECK(calls.insert(call.name).second, "call ", call.name, " is declared twice");
        for (const std::string& name : call.reads) {
            IE_CHECK(values.contains(name), "call ", call.name, " reads ", name, ", which is not declared");
        }
        for (const std::string& name : call.writes) {
            IE_CHECK(values.contains(name) && written.insert(name).second, "call ", call.name, " writes ",
                     name, ", which is not declared or written by another call too");
        }
        for (const std::int64_t bucket : call.buckets) {
            IE_CHECK(bucket < std::ssize(program_.buckets), "call ", call.name, " uses bucket ", bucket,
                     " of ", program_.buckets.size());
        }
    }
    for (const FlatBucket& bucket : program_.buckets) {
        IE_CHECK(bucket.trained || bucket.grads.empty(), "a frozen bucket has gradients");
        for (const std::string& name : bucket.grads) {
            IE_CHECK(written.contains(name) && packed.insert(name).second, "gradient ", name,
                     " is written by no call, or belongs to two buckets");
        }
    }
    for (const std::string& name : program_.loss) {
        IE_CHECK(written.contains(name), "loss ", name, " is written by no call");
    }
}

std::int64_t Layout::num_slices(std::int64_t num_levels) const {
    std::int64_t slices = 1;
    for (std::int64_t k = 0; k < std::min(num_levels, shards_); ++k) slices *= program_.levels[k].size;
    return slices;
}

std::int64_t Layout::numel(std::int64_t bucket, std::int64_t num_levels) const {
    return program_.buckets[bucket].numel / num_slices(num_levels);
}

std::vector<Buffer> Layout::buffers() const {
    const std::int64_t os_bytes = program_.param_bytes == 4 ? 8 : 12;  // an fp32 parameter is its own master
    std::vector<Buffer> buffers;
    for (std::int64_t b = 0; b < std::ssize(program_.buckets); ++b) {
        const auto add = [&](const std::string& name, std::int64_t levels, std::int64_t bytes,
                             bool persistent) {
            buffers.push_back({name, numel(b, levels) * bytes, persistent});
        };
        add(name_in("param", b), 0, program_.param_bytes, params_ == 0);
        if (params_ > 0) add(name_in("pshard", b), params_, program_.param_bytes, true);
        if (b >= num_trained_) continue;
        if (!packs_into_sum()) add(name_in("grad", b), 0, kGradBytes, false);
        for (std::int64_t k = 0; k < all(); ++k) add(reduced(b, k), k + 1, kGradBytes, false);
        for (std::int64_t j = 0; j <= num_digits(); ++j) add(sum(b, j), per_micro_batch(), kGradBytes, true);
        add(name_in("os", b), shards_, os_bytes, true);
        buffers.push_back({name_in("norm", b), kSquaresBytes, false});
    }
    buffers.push_back({"norm", kTotalsNumel * kWordBytes, true});
    return buffers;
}

Operands Layout::operands(const Instruction& i) const {
    const bool in_micro_batch = i.kind == Kind::kCompute || i.kind == Kind::kGather ||
                                i.kind == Kind::kPack || i.kind == Kind::kAccumulate ||
                                (i.kind == Kind::kReduce && level_of(i) < per_micro_batch());
    IE_CHECK(in_micro_batch ? 0 <= i.micro_batch && i.micro_batch < program_.micro_batches
                            : i.micro_batch == kNoMicroBatch,
             "m=", i.micro_batch, " makes no sense for it");
    switch (i.kind) {
        case Kind::kCompute:
            return compute(i);
        case Kind::kGather:
            return gather(bucket_of(i), level_of(i));
        case Kind::kRefresh:
            return refresh(trained_bucket_of(i), level_of(i));
        case Kind::kPack:
            return pack(trained_bucket_of(i), i.micro_batch);
        case Kind::kReduce:
            return reduce(trained_bucket_of(i), level_of(i));
        case Kind::kAccumulate:
            return accumulate(trained_bucket_of(i), i.micro_batch);
        case Kind::kNorm:
            return i.what == "all" ? norm_all(i) : norm(trained_bucket_of(i));
        case Kind::kUpdate:
            return update(trained_bucket_of(i));
        case Kind::kFree:
            return {{}, i.writes, 0};
    }
    fail("unknown kind");
}

Lane Layout::lane(const Instruction& i) const {
    switch (i.kind) {
        case Kind::kCompute:
            return Lane::kCompute;
        case Kind::kGather:
        case Kind::kRefresh:
            return Lane::kGather;
        case Kind::kReduce:
            return program_.levels[level_of(i)].link == Link::kNear ? Lane::kNear : Lane::kFar;
        case Kind::kPack:
        case Kind::kAccumulate:
            return Lane::kHost;
        case Kind::kNorm:
        case Kind::kUpdate:
            return Lane::kOptimizer;
        case Kind::kFree:
            return i.lane;
    }
    fail("unknown kind");
}

Operands Layout::compute(const Instruction& i) const {
    const auto call = std::ranges::find(program_.calls, i.what, &Call::name);
    IE_CHECK(call != program_.calls.end(), "there is no call ", i.what);
    Operands operands;
    for (const std::string& name : call->reads) operands.reads.push_back(in_micro_batch(name, i.micro_batch));
    for (const std::int64_t bucket : call->buckets) operands.reads.push_back(name_in("param", bucket));
    for (const std::string& name : call->writes)
        operands.writes.push_back(in_micro_batch(name, i.micro_batch));
    return operands;
}

Operands Layout::gather(std::int64_t bucket, std::int64_t level) const {
    IE_CHECK(level < params_, "level ", program_.levels[level].name, " does not cut parameters");
    const std::string source = name_in(level == params_ - 1 ? "pshard" : "param", bucket);
    const std::int64_t bytes = numel(bucket, level) * program_.param_bytes;
    return {{source}, {name_in("param", bucket)}, sent(bytes, program_.levels[level].size)};
}

Operands Layout::refresh(std::int64_t bucket, std::int64_t level) const {
    IE_CHECK(params_ <= level && level < shards_, "level ", program_.levels[level].name,
             " does not cut updated parameters");
    const std::int64_t bytes = numel(bucket, level) * program_.param_bytes;
    return {{held(bucket)}, {held(bucket)}, sent(bytes, program_.levels[level].size)};
}

Operands Layout::pack(std::int64_t bucket, std::int64_t micro_batch) const {
    Operands operands;
    for (const std::string& name : program_.buckets[bucket].grads) {
        operands.reads.push_back(in_micro_batch(name, micro_batch));
    }
    const std::string target = name_in(packs_into_sum() ? "gsum" : "grad", bucket);
    if (packs_into_sum() && micro_batch > 0) operands.reads.push_back(target);
    operands.writes = {target};
    return operands;
}

Operands Layout::reduce(std::int64_t bucket, std::int64_t level) const {
    const std::string source = level == per_micro_batch() ? name_in("gsum", bucket)
                               : level == 0               ? name_in("grad", bucket)
                                                          : reduced(bucket, level - 1);
    const std::int64_t size = program_.levels[level].size, wire_bytes = program_.wire_bytes;
    const std::int64_t bytes = level < shards_ ? sent(numel(bucket, level) * wire_bytes, size)
                                               : sent_by_all_reduce(numel(bucket, level), wire_bytes, size);
    return {{source}, {reduced(bucket, level)}, bytes};
}

Operands Layout::accumulate(std::int64_t bucket, std::int64_t micro_batch) const {
    IE_CHECK(!packs_into_sum(), "gradients are packed into gsum already");
    const std::int64_t levels = per_micro_batch();
    Operands operands{{levels == 0 ? name_in("grad", bucket) : reduced(bucket, levels - 1)}, {}};
    if (program_.mode == Mode::kInvariant) {
        const std::int64_t carries = std::countr_one(static_cast<std::uint64_t>(micro_batch));
        for (std::int64_t j = 0; j < carries; ++j) operands.reads.push_back(sum(bucket, j));
        operands.writes = {sum(bucket, carries)};
    } else {
        operands.writes = {sum(bucket, 0)};
        if (micro_batch > 0) operands.reads.push_back(operands.writes[0]);
    }
    return operands;
}

Operands Layout::norm(std::int64_t bucket) const {
    return {{total(bucket)}, {name_in("norm", bucket)}};
}

Operands Layout::norm_all(const Instruction& i) const {
    IE_CHECK(i.level == "all", "level=", i.level, " must be 'all'");
    Operands operands;
    for (std::int64_t b = 0; b < num_trained_; ++b) operands.reads.push_back(name_in("norm", b));
    for (std::int64_t m = 0; m < program_.micro_batches; ++m) {
        for (const std::string& name : program_.loss) operands.reads.push_back(in_micro_batch(name, m));
    }
    operands.writes = {"norm"};
    operands.bytes = sent_by_all_reduce(kTotalsNumel, kWordBytes, program_.world);
    return operands;
}

Operands Layout::update(std::int64_t bucket) const {
    const Names state = {name_in("os", bucket), held(bucket)};
    return {{total(bucket), "norm", state[0], state[1]}, state};
}

std::string Layout::held(std::int64_t bucket) const {
    return name_in(params_ > 0 ? "pshard" : "param", bucket);
}

std::string Layout::reduced(std::int64_t bucket, std::int64_t level) const {
    if (level == all() - 1 && per_micro_batch() < all()) return name_in("total", bucket);
    return name_in("part", bucket) + "." + std::to_string(level);
}

std::string Layout::total(std::int64_t bucket) const {
    return name_in(per_micro_batch() < all() ? "total" : "gsum", bucket);
}

std::string Layout::sum(std::int64_t bucket, std::int64_t digit) const {
    const std::string name = name_in("gsum", bucket);
    return digit == num_digits() ? name : name + "." + std::to_string(digit);
}

std::int64_t Layout::num_digits() const {
    const auto last = static_cast<std::uint64_t>(program_.micro_batches - 1);
    return program_.mode == Mode::kInvariant ? std::bit_width(last) : 0;
}

std::int64_t Layout::bucket_of(const Instruction& i) const {
    std::int64_t bucket = -1;
    if (i.what.starts_with("bucket[")) std::from_chars(&i.what[7], i.what.data() + i.what.size(), bucket);
    IE_CHECK(0 <= bucket && bucket < std::ssize(program_.buckets) && i.what == name_in("bucket", bucket),
             "there is no ", i.what);
    return bucket;
}

std::int64_t Layout::trained_bucket_of(const Instruction& i) const {
    const std::int64_t bucket = bucket_of(i);
    IE_CHECK(bucket < num_trained_, i.what, " is frozen");
    return bucket;
}

std::int64_t Layout::level_of(const Instruction& i) const {
    const auto level = std::ranges::find(program_.levels, i.level, &Level::name);
    IE_CHECK(level != program_.levels.end(), "there is no level ", i.level);
    return level - program_.levels.begin();
}

}  // namespace ie::core

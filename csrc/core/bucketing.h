// Buckets: which parameters travel together, and where each lies in the flat buffer.
//
// A bucket is one flat fp32 buffer of gradients (and of master, exp_avg and exp_avg_sq, which have the same
// layout). Parameters are given in forward order. Gradients appear in the opposite order, so buckets are
// built from the last parameter backwards: bucket 0 is complete first. Whole neighbouring layers are merged
// while the fp32 bytes stay within the target. A layer above the target is split between parameters; a
// parameter is never split, and one above the target has a bucket of its own.
//
// Inside a bucket, decayed parameters come first, so one number tells the optimizer where weight decay ends.
// Every parameter starts at a multiple of 16 elements (64 bytes: a cache line and an AVX-512 register), and
// the length is a multiple of 16 * num_shards, so every owner has an equal, aligned slice. The gaps are zero
// and stay zero.
//
// Frozen parameters have no gradient and are never updated, so they share no bucket with trained ones: their
// buckets are built alike, and come after all of those.
#pragma once

#include <cstdint>
#include <vector>

namespace ie::core {

inline constexpr std::int64_t kAlignment = 16;  // elements

struct Param {
    std::int64_t numel;
    std::int64_t layer;  // never falls from one parameter to the next
    bool decayed;        // takes part in weight decay
    bool trained = true;
};

struct Bucket {
    std::vector<std::int64_t> params;   // indices into the parameters, in order of placement
    std::vector<std::int64_t> offsets;  // first element of each of them
    std::int64_t numel;                 // elements, padded
    std::int64_t decayed_numel;         // elements [0, decayed_numel) belong to decayed parameters
    bool trained;
};

// Pure: equal arguments give equal buckets on every rank. Throws ie::Error for sizes that make no sense.
std::vector<Bucket> make_buckets(const std::vector<Param>& params, std::int64_t target_bytes,
                                 std::int64_t num_shards);

}  // namespace ie::core

#include "core/bucketing.h"

#include "core/error.h"

namespace ie::core {
namespace {

constexpr std::int64_t kBytes = 4;  // of one fp32 element

// Parameters [first, last) that stay together.
struct Piece {
    std::int64_t first;
    std::int64_t last;
    std::int64_t bytes;
};

std::int64_t round_up(std::int64_t numel, std::int64_t multiple) {
    return (numel + multiple - 1) / multiple * multiple;
}

std::int64_t bytes_of(const Param& param) {
    return kBytes * round_up(param.numel, kAlignment);
}

void check(const std::vector<Param>& params, std::int64_t target_bytes, std::int64_t num_shards) {
    IE_CHECK(target_bytes > 0, "target_bytes=", target_bytes, " must be positive");
    IE_CHECK(num_shards > 0, "num_shards=", num_shards, " must be positive");
    for (std::size_t i = 0; i < params.size(); ++i) {
        IE_CHECK(params[i].numel > 0, "parameter ", i, " has numel=", params[i].numel,
                 "; it must be positive");
        IE_CHECK(i == 0 || params[i - 1].layer <= params[i].layer, "parameter ", i, " of layer ",
                 params[i].layer, " comes after one of layer ", params[i - 1].layer,
                 "; give parameters in forward order");
    }
}

// Last layer first: a layer within the target as one piece, any other as one piece a parameter.
std::vector<Piece> make_pieces(const std::vector<Param>& params, std::int64_t target_bytes) {
    std::vector<Piece> pieces;
    for (std::int64_t last = std::ssize(params), first; last > 0; last = first) {
        std::int64_t bytes = 0;
        for (first = last; first > 0 && params[first - 1].layer == params[last - 1].layer; --first) {
            bytes += bytes_of(params[first - 1]);
        }
        if (bytes <= target_bytes) {
            pieces.push_back({first, last, bytes});
            continue;
        }
        for (std::int64_t i = last; i > first; --i) {
            pieces.push_back({i - 1, i, bytes_of(params[i - 1])});
        }
    }
    return pieces;
}

std::vector<Piece> merge(const std::vector<Piece>& pieces, std::int64_t target_bytes) {
    std::vector<Piece> merged;
    for (const Piece& piece : pieces) {
        if (merged.empty() || merged.back().bytes + piece.bytes > target_bytes) {
            merged.push_back(piece);
        } else {
            merged.back().first = piece.first;
            merged.back().bytes += piece.bytes;
        }
    }
    return merged;
}

void place(Bucket& bucket, const std::vector<Param>& params, const Piece& piece, bool decayed) {
    for (std::int64_t i = piece.first; i < piece.last; ++i) {
        if (params[i].decayed == decayed) {
            bucket.params.push_back(i);
            bucket.offsets.push_back(bucket.numel);
            bucket.numel += round_up(params[i].numel, kAlignment);
        }
    }
}

Bucket lay_out(const std::vector<Param>& params, const Piece& piece, std::int64_t num_shards) {
    Bucket bucket{.params = {}, .offsets = {}, .numel = 0, .decayed_numel = 0, .trained = params[0].trained};
    place(bucket, params, piece, true);
    bucket.decayed_numel = bucket.numel;
    place(bucket, params, piece, false);
    bucket.numel = round_up(bucket.numel, kAlignment * num_shards);
    return bucket;
}

// Buckets of the trained parameters, or of the frozen ones.
void append_buckets(std::vector<Bucket>& buckets, const std::vector<Param>& all, bool trained,
                    std::int64_t target_bytes, std::int64_t num_shards) {
    std::vector<Param> params;
    std::vector<std::int64_t> index_of;
    for (std::int64_t i = 0; i < std::ssize(all); ++i) {
        if (all[i].trained != trained) continue;
        params.push_back(all[i]);
        index_of.push_back(i);
    }
    for (const Piece& piece : merge(make_pieces(params, target_bytes), target_bytes)) {
        buckets.push_back(lay_out(params, piece, num_shards));
        for (std::int64_t& param : buckets.back().params) param = index_of[param];
    }
}

}  // namespace

std::vector<Bucket> make_buckets(const std::vector<Param>& params, std::int64_t target_bytes,
                                 std::int64_t num_shards) {
    check(params, target_bytes, num_shards);
    std::vector<Bucket> buckets;
    for (const bool trained : {true, false}) {
        append_buckets(buckets, params, trained, target_bytes, num_shards);
    }
    return buckets;
}

}  // namespace ie::core

// What the header of a Program implies: along which levels each state is cut, which buffers a bucket has and
// how large they are, and what every instruction reads, writes and sends.
//
//     refresh     pshard[b] <- its updated slices          all-gather over OS, then G levels, the last first
//     gather      param[b] <- pshard[b]                    all-gather over P levels, the last first
//     pack        grad[b] <- the gradients of one micro-batch
//     reduce      part[b].k <- grad[b] or part[b].(k-1)    reduce-scatter over level k
//     accumulate  gsum[b] += part[b].k                 mode `invariant`: see below
//     reduce      total[b] <- gsum[b] or part[b].(k-1)     the levels that wait for the last micro-batch
//     norm        norm[b] <- square sum of total[b]; then norm <- all norm[b] and losses, over the world
//     update      os[b], pshard[b] <- total[b], norm
//
// A frozen bucket has pshard and param, and is gathered; nothing else of this happens to it.
//
// Where parameters are whole (no P level) param[b] is persistent and takes the place of pshard[b]. Where no
// level is left for the end, gsum[b] takes the place of total[b]. In mode `fast`, whole gradients (no P or G
// level) are packed straight into gsum[b]; in mode `ordered` every level is reduced before accumulation.
//
// Mode `invariant` is `ordered` whose micro-batches are added in a binary tree too, as a binary counter
// counts: gsum[b].j holds the sum of 2^j micro-batches while digit j is 1, and what is added carries into
// the first digit that is 0. The last carry, of all micro-batches, is gsum[b]:
//
//     m=0  gsum[b].0 <- part        m=2  gsum[b].0 <- part
//     m=1  gsum[b].1 <- part, .0    m=3  gsum[b]   <- part, .0, .1       added from left to right
//
// With powers of two this is one tree over leaf i = m * world + rank, however i is split into m and rank.
//
// The scheduler writes operands from this table and the checker compares with it; that the table itself is
// right is what tests/schedule/integer_ranks.py judges.
#pragma once

#include "core/program.h"

namespace ie::core {

// What all ranks sum at the end of a step: four totals, each as the words of an exact sum.
inline constexpr std::int64_t kNumTotals = 4;      // runtime/totals.h
inline constexpr std::int64_t kWordsOfTotal = 68;  // kernels/exact_sum.h
inline constexpr std::int64_t kWordBytes = 8;

struct Operands {
    Names reads;
    Names writes;
    std::int64_t bytes = 0;  // sent by each rank
};

class Layout {
  public:
    // Keeps a reference to the Program. Throws ie::Error if its header does not add up.
    explicit Layout(const Program& program);

    // Levels [0, params()) cut P, [params(), grads()) G, [grads(), shards()) OS; the rest are replicas.
    std::int64_t params() const { return params_; }
    std::int64_t grads() const { return grads_; }
    std::int64_t shards() const { return shards_; }
    std::int64_t all() const { return std::ssize(program_.levels); }

    // Levels that are reduced before a micro-batch is accumulated.
    std::int64_t per_micro_batch() const { return program_.mode == Mode::kFast ? grads_ : all(); }
    bool packs_into_sum() const { return program_.mode == Mode::kFast && grads_ == 0; }

    std::vector<Buffer> buffers() const;

    // What an instruction of this kind, bucket or call, micro-batch and level must read, write and send.
    // Throws ie::Error if there is no such instruction. `free` alone names its operands itself.
    Operands operands(const Instruction& instruction) const;

    // The lane of an instruction; a `free` may stand in any. Throws ie::Error for an unknown level.
    Lane lane(const Instruction& instruction) const;

    // Elements of a bucket after it was cut along the first `num_levels` levels.
    std::int64_t numel(std::int64_t bucket, std::int64_t num_levels) const;

    // Names of the buffers that play a role: parameters as held between steps, the output of the reduction
    // over a level, the gradient ready for the update.
    std::string held(std::int64_t bucket) const;
    std::string reduced(std::int64_t bucket, std::int64_t level) const;
    std::string total(std::int64_t bucket) const;

    // Where 2^digit micro-batches are added up in mode `invariant`; gsum[b] in the end, and in other modes.
    std::string sum(std::int64_t bucket, std::int64_t digit) const;

    // The numbers behind `what` and `level`. Throw ie::Error if there is no such bucket or level.
    std::int64_t bucket_of(const Instruction& instruction) const;
    std::int64_t level_of(const Instruction& instruction) const;

    // The first buckets are updated; the frozen ones behind them are only gathered.
    std::int64_t num_trained() const { return num_trained_; }

  private:
    std::int64_t count(State last) const;
    std::int64_t num_slices(std::int64_t num_levels) const;
    std::int64_t trained_bucket_of(const Instruction& instruction) const;
    std::int64_t num_digits() const;  // of the last micro-batch's number, in mode `invariant`
    void check_levels() const;
    void check_names() const;

    Operands compute(const Instruction& instruction) const;
    Operands gather(std::int64_t bucket, std::int64_t level) const;
    Operands refresh(std::int64_t bucket, std::int64_t level) const;
    Operands pack(std::int64_t bucket, std::int64_t micro_batch) const;
    Operands reduce(std::int64_t bucket, std::int64_t level) const;
    Operands accumulate(std::int64_t bucket, std::int64_t micro_batch) const;
    Operands norm(std::int64_t bucket) const;
    Operands norm_all(const Instruction& instruction) const;
    Operands update(std::int64_t bucket) const;

    const Program& program_;
    std::int64_t params_;
    std::int64_t grads_;
    std::int64_t shards_;
    std::int64_t num_trained_;
};

// "param[3]"
std::string name_in(const char* what, std::int64_t bucket);

// Value %h0 of micro-batch 1 is the operand %m1.h0.
std::string in_micro_batch(const std::string& value, std::int64_t micro_batch);

}  // namespace ie::core

// What run.guard=full writes down of a step: checksums of what was sent and received, and of what should not
// change between two updates. One exchange of integers at the end of the step, before the update, says
// whether all of it agrees; who is to blame is looked for only then (internevo_engine/runtime/audit.py).
//
// A message is accounted for by its sender and its receiver, so over all ranks a transfer's balance is 0. A
// backend's own sum is no message and has no entry: `full` routes sums as messages (runtime/transfers.py).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/transfers.h"

namespace ie::runtime {

class Audit {
  public:
    // members[i] of the group of instruction i; 0: it sends nothing.
    Audit(std::vector<std::int64_t> members, std::int64_t num_buckets, at::Device device);

    void begin();  // a step
    Account* account(std::size_t instruction);

    // The states of a bucket, before and after an update. What is found before is compared with what was
    // left.
    void find(std::int64_t bucket, const std::vector<at::Tensor>& states);
    void leave(std::int64_t bucket, const std::vector<at::Tensor>& states);

    // 0-dim bool: all is well, on every rank. `world` is null where there is only one.
    at::Tensor settle(const Transfers* world);

    // Balances of the instructions, then of the buckets at rest: of this rank, and summed over all.
    at::Tensor own() const { return own_; }
    at::Tensor total() const { return total_; }
    at::Tensor messages(std::int64_t instruction) const;  // [2, members]: sent to, received from

  private:
    std::vector<Account> accounts_;  // of each instruction
    at::Tensor left_, found_;        // int64 [buckets]
    at::Tensor own_, total_;
};

}  // namespace ie::runtime

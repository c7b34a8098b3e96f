// torch.classes.internevo.Mirror: what the ranks of a host do, shown to the other hosts, and theirs to this
// one.
//
//     Mirror(group, board, world, first, count)    in the host's first rank, which holds ranks first .. first
//     + count - 1
//
// A thread without Python posts the state of the host's slots to the job's store and writes what the other
// hosts posted into their slots of this host's board. To a watchdog there is then no difference between a
// rank of this host and one of another: who does not reach the store any more falls silent for all others,
// and they for it.
#pragma once

#include <torch/custom_class.h>

#include <stop_token>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "runtime/board.h"

namespace ie::runtime {

class Mirror : public torch::CustomClassHolder {
  public:
    // Over the store of a process group, by a connection of its own. All hosts call it together, and agree
    // afterwards that all have: then every host's state is in the store.
    Mirror(const std::string& group, std::int64_t board, std::int64_t world, std::int64_t first,
           std::int64_t count);

  private:
    void serve(const std::stop_token& stop);
    void post();
    void fetch();

    c10::intrusive_ptr<c10d::Store> store_;
    Board board_;
    int first_, count_;
    std::vector<int> other_hosts_;   // their first ranks
    std::vector<std::string> keys_;  // of the other hosts
    std::jthread thread_;            // last: it ends before what it uses
};

}  // namespace ie::runtime

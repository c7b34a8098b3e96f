// How gradients and parameters travel in one process group: reduce-scatter, all-gather, all-reduce.
//
// A route says how a transfer of some kind and size is carried. Routes come from Python as rows, one table
// for each backend; the first row that fits counts, so all ranks choose alike:
//
//     backend   the backend's own collective. Sums are its own, so it carries fp32 only.
//     ordered   reduce-scatter is an all-to-all, then a sum in fp32 by the owner in a binary tree over the
//               member index, ((0 + 1) + (2 + 3)) + ...; all-reduce is that and an all-gather. With
//               power-of-two groups of neighbours, nested reduce-scatters add in one tree for every nesting.
//
// Both may be cut into pieces that are in flight together: gloo sends one large message in one direction at a
// time. What is sent has the wire's dtype; sums are fp32. A sender copies what is not fp32 in one piece,
// piece by piece while the earlier ones travel; the owner reads what it received once, as it arrives.
//
// All tensors are flat and contiguous. Buffers and collectives are device-generic.
#pragma once

#include <torch/custom_class.h>

#include <cstdint>
#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <tuple>
#include <vector>

namespace ie::runtime {

enum class Transfer { kReduceScatter, kAllGather, kAllReduce };

struct Route {
    Transfer transfer;
    std::int64_t up_to_bytes;  // of the longer side
    bool ordered;
    std::int64_t pieces;

    // (("reduce_scatter" | "all_gather" | "all_reduce", "backend" | "ordered"), bytes, pieces)
    using Row = std::tuple<std::tuple<std::string, std::string>, std::int64_t, std::int64_t>;
    static std::vector<Route> parse(const std::vector<Row>& rows);
};

// Checksums of what one transfer sent to each member of the group and received from it, added up over its
// pieces: int64 [members].
struct Account {
    at::Tensor sent, received;
};

class Transfers : public torch::CustomClassHolder {
  public:
    using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
    using Wait = std::function<void(c10d::Work&)>;

    // `wait` returns when the work has ended and throws its error. Here and below: throws ie::Error.
    Transfers(Group group, std::vector<Route> routes, at::ScalarType wire, Wait wait);

    // in [size * n] fp32, member r's slice at r * n -> out [n] fp32. Here and below: `account` may be null.
    void reduce_scatter(const at::Tensor& out, const at::Tensor& in, Account* account) const;

    // in [n] -> out [size * n], member r's slice at r * n. `in` may be this member's slice of `out`.
    void all_gather(const at::Tensor& out, const at::Tensor& in, Account* account) const;

    // in [n] fp32 -> out [n] fp32, equal bits on all members.
    void all_reduce(const at::Tensor& out, const at::Tensor& in, Account* account) const;

    // In place and in no particular order: for integers.
    void sum_(const at::Tensor& integers) const;

    std::int64_t size() const { return size_; }

  private:
    const Route& route(Transfer transfer, const at::Tensor& longer) const;
    void reduce_scatter_in_order(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                                 Account* account) const;
    void all_reduce_in_order(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                             Account* account) const;
    void gather(at::Tensor out, at::Tensor in, Account* account) const;
    void gather_in_pieces(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                          Account* account) const;

    Group group_;
    std::int64_t size_;
    std::vector<Route> routes_;
    at::ScalarType wire_;
    Wait wait_;
};

}  // namespace ie::runtime

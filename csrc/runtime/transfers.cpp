#include "runtime/transfers.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "core/error.h"
#include "core/faults.h"
#include "runtime/checksums.h"
#include "runtime/damage.h"

namespace ie::runtime {
namespace {

using Work = c10::intrusive_ptr<c10d::Work>;

constexpr std::array<std::string_view, 3> kTransfers = {"reduce_scatter", "all_gather", "all_reduce"};
constexpr std::array<std::string_view, 2> kAlgorithms = {"backend", "ordered"};

template <std::size_t N>
std::size_t index_of(const std::array<std::string_view, N>& names, const std::string& name) {
    for (std::size_t i = 0; i < N; ++i) {
        if (names[i] == name) return i;
    }
    fail("a route names '", name, "', which is unknown");
}

// Slices are cut evenly: the most pieces up to `asked` that divide numel.
std::int64_t even_pieces(std::int64_t numel, std::int64_t asked) {
    while (numel % asked != 0) --asked;
    return asked;
}

// Contiguous and in the wire's dtype: the view itself, or one copy.
at::Tensor staged(const at::Tensor& view, at::ScalarType wire) {
    if (view.is_contiguous() && view.scalar_type() == wire) return view;
    return at::empty(view.sizes(), view.options().dtype(wire)).copy_(view);
}

// rows [size, n] on the wire -> out [n] fp32, in the tree of kernels/tree_sum.h.
void sum_rows(const at::Tensor& out, const at::Tensor& rows) {
    using Op = void(const at::Tensor&, const at::Tensor&);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("internevo::tree_sum_", "").typed<Op>();
    op.call(out, rows);
}

// Between the wire and who reads it.
const at::Tensor& arrived(const at::Tensor& received) {
    if (const auto fault = core::fault(core::FaultPoint::kMessage)) damage(received, *fault);
    return received;
}

// Rows of equal size, one to or from each member.
void add_sent(Account* account, const at::Tensor& rows, std::int64_t members) {
    if (account) account->sent += checksums(rows, members);
}

void add_received(Account* account, const at::Tensor& rows, std::int64_t members) {
    if (account) account->received += checksums(rows, members);
}

}  // namespace

std::vector<Route> Route::parse(const std::vector<Row>& rows) {
    std::vector<Route> routes;
    for (const auto& [names, up_to_bytes, pieces] : rows) {
        const auto& [transfer, algorithm] = names;
        IE_CHECK(pieces > 0, "a route has pieces=", pieces, "; it must be positive");
        routes.push_back({static_cast<Transfer>(index_of(kTransfers, transfer)), up_to_bytes,
                          index_of(kAlgorithms, algorithm) == 1, pieces});
    }
    return routes;
}

Transfers::Transfers(Group group, std::vector<Route> routes, at::ScalarType wire, Wait wait)
    : group_(std::move(group)),
      size_(group_->getSize()),
      routes_(std::move(routes)),
      wire_(wire),
      wait_(std::move(wait)) {
    for (const Route& route : routes_) {
        IE_CHECK(route.ordered || wire_ == at::kFloat || route.transfer == Transfer::kAllGather,
                 "the route of ", kTransfers[static_cast<std::size_t>(route.transfer)],
                 " must be 'ordered' for a wire of ", wire_, ": the backend would add in that dtype");
    }
}

void Transfers::reduce_scatter(const at::Tensor& out, const at::Tensor& in, Account* account) const {
    const Route& route = this->route(Transfer::kReduceScatter, in);
    if (route.ordered) return reduce_scatter_in_order(out, in, route.pieces, account);
    at::Tensor to = out, from = in;
    wait_(*group_->reduce_scatter_single(to, from));
}

void Transfers::all_gather(const at::Tensor& out, const at::Tensor& in, Account* account) const {
    const std::int64_t pieces = even_pieces(in.numel(), route(Transfer::kAllGather, out).pieces);
    pieces == 1 ? gather(out, in, account) : gather_in_pieces(out, in, pieces, account);
}

void Transfers::all_reduce(const at::Tensor& out, const at::Tensor& in, Account* account) const {
    const Route& route = this->route(Transfer::kAllReduce, in);
    if (route.ordered) return all_reduce_in_order(out, in, route.pieces, account);
    out.copy_(in);
    sum_(out);
}

void Transfers::sum_(const at::Tensor& tensor) const {
    std::vector<at::Tensor> tensors{tensor};
    wait_(*group_->allreduce(tensors));
}

const Route& Transfers::route(Transfer transfer, const at::Tensor& longer) const {
    const auto bytes = static_cast<std::int64_t>(longer.nbytes());
    const auto fits = [&](const Route& route) {
        return route.transfer == transfer && bytes <= route.up_to_bytes;
    };
    const auto found = std::ranges::find_if(routes_, fits);
    IE_CHECK(found != routes_.end(), "no route for ", kTransfers[static_cast<std::size_t>(transfer)], " of ",
             bytes, " bytes; add a row");
    return *found;
}

void Transfers::reduce_scatter_in_order(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                                        Account* account) const {
    pieces = even_pieces(out.numel(), pieces);
    const at::Tensor cut = in.view({size_, pieces, -1}), sums = out.view({pieces, -1});
    std::vector<std::int64_t> even;
    std::vector<at::Tensor> received;
    std::vector<Work> works;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        at::Tensor from = staged(cut.select(1, piece), wire_),
                   to = at::empty_like(from);  // row r: of member r
        add_sent(account, from, size_);
        received.push_back(to);
        works.push_back(group_->all_to_all_single(to, from, even, even));
    }
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        wait_(*works[piece]);
        add_received(account, arrived(received[piece]), size_);
        sum_rows(sums[piece], received[piece]);
    }
}

// Reduce-scatter into this member's slice, then an all-gather; in `out` itself where it has equal slices of
// the wire's dtype.
void Transfers::all_reduce_in_order(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                                    Account* account) const {
    const std::int64_t numel = in.numel(), slice = (numel + size_ - 1) / size_, padded = slice * size_;
    const bool in_place = padded == numel && wire_ == at::kFloat;
    const at::Tensor whole = in_place ? out : at::empty({padded}, in.options().dtype(wire_));
    const at::Tensor own = whole.narrow(0, group_->getRank() * slice, slice);
    const at::Tensor sum = in_place ? own : at::empty({slice}, in.options());
    reduce_scatter_in_order(sum, padded == numel ? in : at::constant_pad_nd(in, {0, padded - numel}), pieces,
                            account);
    if (!in_place) own.copy_(sum);  // the owner rounds to the wire as well, so members keep equal bits
    all_gather(whole, own, account);
    if (!in_place) out.copy_(whole.narrow(0, 0, numel));
}

void Transfers::gather(at::Tensor out, at::Tensor in, Account* account) const {
    add_sent(account, in, 1);
    wait_(*group_->all_gather_single(out, in));
    add_received(account, arrived(out), size_);
}

void Transfers::gather_in_pieces(const at::Tensor& out, const at::Tensor& in, std::int64_t pieces,
                                 Account* account) const {
    const at::Tensor sent = in.view({pieces, -1}), cut = out.view({size_, pieces, -1});
    std::vector<at::Tensor> received;
    std::vector<Work> works;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        at::Tensor to = at::empty({size_ * sent.size(1)}, in.options()), from = sent[piece];
        add_sent(account, from, 1);
        received.push_back(to);
        works.push_back(group_->all_gather_single(to, from));
    }
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        wait_(*works[piece]);
        add_received(account, arrived(received[piece]), size_);
        cut.select(1, piece).copy_(received[piece].view({size_, -1}));
    }
}

}  // namespace ie::runtime

TORCH_LIBRARY_FRAGMENT(internevo, m) {
    using ie::runtime::Route;
    using ie::runtime::Transfers;
    const auto make = [](const std::string& group, const std::vector<Route::Row>& rows, at::ScalarType wire) {
        return c10::make_intrusive<Transfers>(c10d::resolve_process_group(group), Route::parse(rows), wire,
                                              [](c10d::Work& work) { work.wait(); });
    };
    const auto unaudited = [](auto transfer) {
        return [transfer](const c10::intrusive_ptr<Transfers>& self, const at::Tensor& out,
                          const at::Tensor& in) { (*self.*transfer)(out, in, nullptr); };
    };
    m.class_<Transfers>("Transfers")
        .def(torch::init(make))
        .def("reduce_scatter", unaudited(&Transfers::reduce_scatter))
        .def("all_gather", unaudited(&Transfers::all_gather))
        .def("all_reduce", unaudited(&Transfers::all_reduce))
        .def("sum_", &Transfers::sum_);
}

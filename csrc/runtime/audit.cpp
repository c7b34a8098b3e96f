#include "runtime/audit.h"

#include "core/error.h"
#include "runtime/checksums.h"

namespace ie::runtime {
namespace {

at::Tensor sum_of(const std::vector<at::Tensor>& states) {
    at::Tensor sum = checksums(states[0], 1);
    for (std::size_t i = 1; i < states.size(); ++i) sum += checksums(states[i], 1);
    return sum[0];
}

}  // namespace

Audit::Audit(std::vector<std::int64_t> members, std::int64_t num_buckets, at::Device device)
    : accounts_(members.size()) {
    const auto options = at::TensorOptions(at::kLong).device(device);
    for (std::size_t i = 0; i < members.size(); ++i) {
        if (members[i] == 0) continue;
        accounts_[i] = {at::zeros({members[i]}, options), at::zeros({members[i]}, options)};
    }
    left_ = at::zeros({num_buckets}, options);
    found_ = at::zeros({num_buckets}, options);
}

void Audit::begin() {
    for (Account& account : accounts_) {
        if (!account.sent.defined()) continue;
        account.sent.zero_();
        account.received.zero_();
    }
}

Account* Audit::account(std::size_t instruction) {
    return accounts_[instruction].sent.defined() ? &accounts_[instruction] : nullptr;
}

void Audit::find(std::int64_t bucket, const std::vector<at::Tensor>& states) {
    found_[bucket].copy_(sum_of(states));
}

void Audit::leave(std::int64_t bucket, const std::vector<at::Tensor>& states) {
    left_[bucket].copy_(sum_of(states));
}

at::Tensor Audit::settle(const Transfers* world) {
    std::vector<at::Tensor> balances;
    for (const Account& account : accounts_) {
        balances.push_back(account.sent.defined() ? (account.sent - account.received).sum()
                                                  : at::zeros({}, left_.options()));
    }
    own_ = at::cat({at::stack(balances), left_ - found_});
    total_ = own_.clone();
    if (world) world->sum_(total_);
    return (total_ == 0).all();
}

at::Tensor Audit::messages(std::int64_t instruction) const {
    const Account& account = accounts_.at(instruction);
    IE_CHECK(account.sent.defined(), "instruction ", instruction, " sends nothing");
    return at::stack({account.sent, account.received});
}

}  // namespace ie::runtime

#include "runtime/mirror.h"

#include <torch/library.h>

#include <chrono>
#include <cstring>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "core/error.h"

namespace ie::runtime {
namespace {

constexpr std::chrono::milliseconds kPeriod{200};  // a tenth of the silence that is forgiven

std::string key_of(int first) {
    return "internevo board of rank " + std::to_string(first);
}

}  // namespace

Mirror::Mirror(const std::string& group, std::int64_t board, std::int64_t world, std::int64_t first,
               std::int64_t count)
    : store_(c10d::resolve_process_group(group)->getStore()->clone()),
      board_(static_cast<int>(board), static_cast<int>(world)),
      first_(static_cast<int>(first)),
      count_(static_cast<int>(count)) {
    for (int other = 0; other < board_.world(); other += count_) {
        if (other == first_) continue;
        other_hosts_.push_back(other);
        keys_.push_back(key_of(other));
    }
    post();
    thread_ = std::jthread([this](const std::stop_token& stop) { serve(stop); });
}

void Mirror::serve(const std::stop_token& stop) {
    try {
        while (!stop.stop_requested()) {
            std::this_thread::sleep_for(kPeriod);
            post();
            fetch();
        }
        post();                        // that the ranks have gone
    } catch (const std::exception&) {  // the store is gone: the others fall silent, which the watchdogs see
    }
}

void Mirror::post() {
    std::vector<std::uint8_t> bytes(sizeof(Slot::State) * static_cast<std::size_t>(count_));
    for (int i = 0; i < count_; ++i) {
        const Slot::State state = board_.slot(first_ + i).state();
        std::memcpy(bytes.data() + sizeof state * static_cast<std::size_t>(i), &state, sizeof state);
    }
    store_->set(key_of(first_), bytes);
}

void Mirror::fetch() {
    for (std::size_t host = 0; host < keys_.size(); ++host) {
        const std::vector<std::uint8_t> bytes = store_->get(keys_[host]);
        IE_CHECK(bytes.size() == sizeof(Slot::State) * static_cast<std::size_t>(count_), "a board of ",
                 bytes.size(), " bytes; every host must have ", count_, " ranks and the same build");
        for (int i = 0; i < count_; ++i) {
            Slot::State state;
            std::memcpy(&state, bytes.data() + sizeof state * static_cast<std::size_t>(i), sizeof state);
            board_.slot(other_hosts_[host] + i).show(state);
        }
    }
}

}  // namespace ie::runtime

TORCH_LIBRARY_FRAGMENT(internevo, m) {
    using ie::runtime::Mirror;
    m.class_<Mirror>("Mirror").def(
        torch::init<const std::string&, std::int64_t, std::int64_t, std::int64_t, std::int64_t>());
}

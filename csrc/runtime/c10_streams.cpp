#include "runtime/c10_streams.h"

namespace ie::runtime {

C10Streams::C10Streams(c10::Device device, std::size_t num_lanes, std::size_t num_events)
    : guard_(device.type()), device_(device), streams_{guard_.getStream(device)} {
    while (streams_.size() < num_lanes) streams_.push_back(guard_.getNewStream(device));
    while (events_.size() < num_events) events_.emplace_back(device.type());
}

void C10Streams::enter(std::size_t lane) {
    guard_.exchangeStream(streams_[lane]);
    entered_ = lane;
}

}  // namespace ie::runtime

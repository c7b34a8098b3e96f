// The streams of a device as torch knows them, by c10's device-generic guards: no CUDA header is needed, and
// any device type with a registered guard will do.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <vector>

#include "runtime/streams.h"

namespace ie::runtime {

class C10Streams : public StreamDevice {
  public:
    // A new stream for every lane but the caller's. Throws c10::Error if the device has none.
    C10Streams(c10::Device device, std::size_t num_lanes, std::size_t num_events);

    void begin() override { streams_[0] = guard_.getStream(device_); }
    void enter(std::size_t lane) override;
    void record(std::size_t event) override { events_[event].record(streams_[entered_]); }
    void wait(std::size_t event) override { events_[event].block(streams_[entered_]); }

  private:
    c10::impl::VirtualGuardImpl guard_;
    c10::Device device_;
    std::vector<c10::Stream> streams_;
    std::vector<c10::Event> events_;
    std::size_t entered_ = 0;
};

}  // namespace ie::runtime

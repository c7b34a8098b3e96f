// Gives the CPU streams that only write down what they are told, by the same c10 interface through which
// CUDA's are reached: each line of the log is "enter STREAM", "record STREAM EVENT", "wait STREAM EVENT", or
// "host" for a wait of the host. Stream 0 is the one that is current at first. Built and read by
// test_streams.py.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <string>

namespace {

using c10::Stream;
using c10::StreamId;

std::string lines;
StreamId num_streams = 1, current = 0;
std::int64_t num_events = 0;

void note(const char* what, StreamId stream, const void* event) {
    lines += std::string(what) + " " + std::to_string(stream) + " " +
             std::to_string(*static_cast<const std::int64_t*>(event)) + "\n";
}

struct RecordingGuard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CPU> {
    static Stream stream(StreamId id) { return Stream(Stream::UNSAFE, c10::Device(c10::kCPU, 0), id); }

    Stream getStream(c10::Device) const noexcept override { return stream(current); }
    Stream getNewStream(c10::Device, int) const override { return stream(num_streams++); }
    Stream exchangeStream(Stream next) const noexcept override {
        lines += "enter " + std::to_string(next.id()) + "\n";
        return stream(std::exchange(current, next.id()));
    }

    void record(void** event, const Stream& on, c10::DeviceIndex, c10::EventFlag) const override {
        if (*event == nullptr) *event = new std::int64_t(num_events++);
        note("record", on.id(), *event);
    }
    void block(void* event, const Stream& on) const override { note("wait", on.id(), event); }
    void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
        delete static_cast<std::int64_t*>(event);
    }
    bool queryEvent(void*) const override { return true; }

    void synchronizeStream(const Stream&) const override { lines += "host\n"; }
    void synchronizeEvent(void*) const override { lines += "host\n"; }
    void synchronizeDevice(c10::DeviceIndex) const override { lines += "host\n"; }
};

}  // namespace

extern "C" void give_cpu_streams() {
    c10::impl::registerDeviceGuard(c10::kCPU, new RecordingGuard);  // lives as long as the registry
}

extern "C" const char* recorded() {
    return lines.c_str();
}

#include "runtime/memory.h"

#include <algorithm>

#include "core/error.h"
#include "core/layout.h"

namespace ie::runtime {
namespace {

bool starts_with_any(const std::string& name, std::initializer_list<const char*> prefixes) {
    return std::ranges::any_of(prefixes, [&](const char* prefix) { return name.starts_with(prefix); });
}

}  // namespace

Memory::Memory(const core::Program& program, const Tensors& persistent) {
    for (const auto& [name, tensor] : persistent) {
        IE_CHECK(tensor.dim() == 1 && tensor.is_contiguous(), "buffer ", name, " must be flat, not of shape ",
                 tensor.sizes());
        if (starts_with_any(name, {"param[", "pshard["})) param_options_ = tensor.options();
    }
    for (const core::Buffer& buffer : program.buffers) declare(buffer, persistent);
    for (std::int64_t m = 0; m < program.micro_batches; ++m) {
        for (const core::Value& value : program.values) declare(core::in_micro_batch(value.name, m));
    }
}

Memory::Entry& Memory::declare(const std::string& name) {
    slots_.emplace(name, entries_.size());
    return entries_.emplace_back(name);
}

// os[b] and norm are the executor's own: they have a slot, and never a tensor.
void Memory::declare(const core::Buffer& buffer, const Tensors& persistent) {
    Entry& entry = declare(buffer.name);
    entry.persistent = buffer.persistent;
    const bool is_param = starts_with_any(buffer.name, {"param[", "pshard["});
    entry.options = is_param ? param_options_ : param_options_.dtype(at::kFloat);
    entry.numel = buffer.bytes / static_cast<std::int64_t>(entry.options.dtype().itemsize());
    if (!buffer.persistent || starts_with_any(buffer.name, {"os[", "norm"})) return;
    const auto found = persistent.find(buffer.name);
    IE_CHECK(found != persistent.end(), "buffer ", buffer.name, " is persistent; give its tensor");
    entry.tensor = found->second;
    IE_CHECK(static_cast<std::int64_t>(entry.tensor.nbytes()) == buffer.bytes, "buffer ", buffer.name,
             " has ", entry.tensor.nbytes(), " bytes; the Program declares ", buffer.bytes);
}

Memory::Slot Memory::slot(const std::string& name) const {
    const auto found = slots_.find(name);
    IE_CHECK(found != slots_.end(), "the Program declares no ", name);
    return found->second;
}

const at::Tensor& Memory::read(Slot slot) const {
    const Entry& entry = entries_[slot];
    IE_CHECK(entry.tensor.defined(), entry.name, " is read, but is not there");
    return entry.tensor;
}

const at::Tensor& Memory::target(Slot slot) {
    Entry& entry = entries_[slot];
    if (!entry.tensor.defined()) put(slot, at::empty({entry.numel}, entry.options));
    return entry.tensor;
}

void Memory::put(Slot slot, at::Tensor value) {
    free(slot);
    count(static_cast<std::int64_t>(value.nbytes()));
    entries_[slot].tensor = std::move(value);
}

void Memory::free(Slot slot) {
    Entry& entry = entries_[slot];
    if (entry.persistent || !entry.tensor.defined()) return;
    count(-static_cast<std::int64_t>(entry.tensor.nbytes()));
    entry.tensor.reset();
}

void Memory::count(std::int64_t bytes) {
    const std::int64_t live = live_bytes_ += bytes;
    for (std::int64_t peak = peak_bytes_; peak < live && !peak_bytes_.compare_exchange_weak(peak, live);)
        continue;
}

}  // namespace ie::runtime

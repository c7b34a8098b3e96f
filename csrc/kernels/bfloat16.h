// bfloat16 as the kernels see it: the upper half of an fp32, rounded to nearest even as torch rounds it.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace ie::kernels {

struct BFloat16 {
    std::uint16_t bits;
};

IE_HOST_DEVICE BFloat16 to_bfloat16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    // Rounding would carry a NaN's payload into the exponent; all NaNs become the quiet one.
    return {static_cast<std::uint16_t>(value == value ? rounded : 0x7FC0u)};
}

IE_HOST_DEVICE float to_float(BFloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

}  // namespace ie::kernels

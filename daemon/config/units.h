// Sizes and durations as people write them: "12GiB", "60%", "50ms".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace kvmem::config {

// Bytes. Accepts a plain number of bytes, a number with B, K, KiB, M, MiB, G, GiB, T, TiB (powers
// of 1024) or KB, MB, GB, TB (powers of 1000), fractions ("1.5GiB"), and "60%" of `whole_bytes`.
// kInvalid otherwise, with a `what` that shows how to write one; a percentage is refused when
// `whole_bytes` is 0. Percentages over 100 are refused.
Result<std::uint64_t> parse_size(std::string_view text, std::uint64_t whole_bytes = 0);

// Nanoseconds. A number with ns, us, ms, s or min.
Result<std::uint64_t> parse_duration(std::string_view text);

// The shortest exact spelling that parse_size reads back: "12GiB", "1536MiB", "1000B".
std::string show_size(std::uint64_t size_bytes);

// The shortest exact spelling that parse_duration reads back: "50ms".
std::string show_duration(std::uint64_t duration_ns);

}  // namespace kvmem::config

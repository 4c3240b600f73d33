// What the kernel tells in small text files (/proc, /sys). What is not there or is no number reads
// as empty or 0. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvmem::os {

// At most its first 8 KiB.
std::string kernel_text(const std::string& path);
// Of a file that begins with one: "12\n".
std::uint64_t kernel_number(const std::string& path);
// In bytes, of the line that has `key`: "MemTotal:   123 kB", also "Node 1 MemTotal: ...".
std::uint64_t kernel_bytes(const std::string& path, std::string_view key);

}  // namespace kvmem::os

// Numbers and names as text for a person.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvmem::cli {

std::string format(const char* pattern, double value);  // of printf, with one %f, %g or %e

std::string human_bytes(std::uint64_t size_bytes);             // "1.50 GiB", "512 B"
std::string human_count(std::uint64_t count);                  // "1,234,567"
std::string human_seconds(double seconds);                     // "3 h 12 min", "4.5 s"
std::string micros(double us);                                 // "850 us", "2.30 ms"
std::string percent(std::uint64_t part, std::uint64_t whole);  // "50 %"; of nothing: ""

std::string printable(std::string_view text);  // control characters as '?'

// Columns that UTF-8 takes, one a code point: names here are seldom wider.
std::size_t columns_of(std::string_view s);
// The end of a path or name says more than its beginning.
std::string shortened(const std::string& s, std::size_t width);

std::string joined(const std::vector<std::string>& parts, const char* separator);  // no empty ones

}  // namespace kvmem::cli

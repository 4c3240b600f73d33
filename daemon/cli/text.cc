#include "cli/text.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace kvmem::cli {

std::string format(const char* pattern, double value) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), pattern, value);
  return buffer.data();
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return "";
  return format("%.0f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string micros(double us) {
  if (us < 1000) return format("%.0f us", us);
  if (us < 1'000'000) return format("%.2f ms", us / 1000);
  return format("%.2f s", us / 1'000'000);
}

std::string human_bytes(std::uint64_t size_bytes) {
  constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (size_bytes < 1024) return std::to_string(size_bytes) + " B";
  double value = static_cast<double>(size_bytes) / 1024;
  std::size_t unit = 0;
  // 1023.995 would be printed as 1024.
  while (value >= 1023.995 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const char* const pattern = value < 9.995 ? "%.2f" : value < 99.95 ? "%.1f" : "%.0f";
  return format(pattern, value) + " " + kUnits[unit];
}

std::string human_count(std::uint64_t count) {
  std::string digits = std::to_string(count);
  for (std::size_t at = digits.size(); at > 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string human_seconds(double seconds) {
  if (seconds < 0.9995) return format("%.0f ms", seconds * 1000);
  if (seconds < 59.95) return format("%.1f s", seconds);
  constexpr double kMost = 1e15;  // a time from elsewhere may be any number
  const auto minutes = static_cast<std::uint64_t>(std::min(seconds, kMost) / 60);
  if (minutes < 60) {
    return std::to_string(minutes) + " min " +
           format("%.0f s", seconds - 60 * static_cast<double>(minutes));
  }
  if (minutes < 24 * 60) {
    return std::to_string(minutes / 60) + " h " + std::to_string(minutes % 60) + " min";
  }
  return std::to_string(minutes / 1440) + " d " + std::to_string(minutes / 60 % 24) + " h";
}

std::string printable(std::string_view s) {
  std::string out(s);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto c = static_cast<unsigned char>(out[i]);
    // C0, DEL, and C1 as UTF-8 writes it.
    const bool c1 =
        c == 0xC2 && i + 1 < out.size() && static_cast<unsigned char>(out[i + 1]) < 0xA0;
    if (c1) out[i + 1] = '?';
    if (c < 0x20 || c == 0x7F || c1) out[i] = '?';
  }
  return out;
}

std::size_t columns_of(std::string_view s) {
  return static_cast<std::size_t>(
      std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string shortened(const std::string& s, std::size_t width) {
  const std::size_t has_columns = columns_of(s);
  if (has_columns <= width || width < 3) return s;
  std::size_t at = 0;
  for (std::size_t dropped = 0; dropped < has_columns - width + 2; ++dropped) {
    do {
      ++at;
    } while (at < s.size() && (s[at] & 0xC0) == 0x80);
  }
  std::string out = "..";
  out.append(s, at);
  return out;
}

std::string joined(const std::vector<std::string>& parts, const char* separator) {
  std::string out;
  for (const std::string& part : parts) {
    if (part.empty()) continue;
    out += (out.empty() ? "" : separator) + part;
  }
  return out;
}

}  // namespace kvmem::cli

#include "config/units.h"

#include <charconv>
#include <cmath>
#include <cstddef>
#include <system_error>

namespace kvmem::config {
namespace {

struct Unit {
  std::string_view name;
  double factor = 1;
};

constexpr double kKi = 1024;
constexpr Unit kSizeUnits[] = {
    {"", 1},
    {"B", 1},
    {"K", kKi},
    {"KiB", kKi},
    {"M", kKi* kKi},
    {"MiB", kKi* kKi},
    {"G", kKi* kKi* kKi},
    {"GiB", kKi* kKi* kKi},
    {"T", kKi* kKi* kKi* kKi},
    {"TiB", kKi* kKi* kKi* kKi},
    {"KB", 1e3},
    {"MB", 1e6},
    {"GB", 1e9},
    {"TB", 1e12},
};
constexpr Unit kDurationUnits[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"min", 60e9}};

constexpr double kValueMax = 9.2e18;  // below 2^63: sums of two still fit

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// Splits "1.5 GiB" into 1.5 and "GiB"; false when there is no plain number in front.
bool split(std::string_view text, double* number, std::uint64_t* whole, bool* is_whole,
           std::string_view* unit) {
  text = trim(text);
  const std::size_t end = text.find_first_not_of("0123456789.");
  const std::string_view digits = text.substr(0, end);
  *unit = end == std::string_view::npos ? std::string_view{} : trim(text.substr(end));
  if (digits.empty() || digits.front() == '.' || digits.back() == '.') return false;
  const char* const last = digits.data() + digits.size();
  const auto as_int = std::from_chars(digits.data(), last, *whole);
  *is_whole = as_int.ec == std::errc{} && as_int.ptr == last;
  const auto as_double = std::from_chars(digits.data(), last, *number);
  return as_double.ec == std::errc{} && as_double.ptr == last;
}

template <std::size_t N>
const Unit* find_unit(const Unit (&units)[N], std::string_view name) {
  for (const Unit& unit : units) {
    if (unit.name == name) return &unit;
  }
  return nullptr;
}

Result<std::uint64_t> scale(double number, std::uint64_t whole, bool is_whole, double factor) {
  const double value = number * factor;
  if (!(value < kValueMax)) return Status{Code::kInvalid, "the number is too large"};
  // Whole numbers stay exact; a fraction is rounded to the nearest unit.
  if (is_whole) return whole * static_cast<std::uint64_t>(factor);
  return static_cast<std::uint64_t>(std::llround(value));
}

template <std::size_t N>
std::string show_in(const Unit (&units)[N], std::uint64_t value, std::string_view smallest) {
  const Unit* best = nullptr;
  for (const Unit& unit : units) {
    const auto factor = static_cast<std::uint64_t>(unit.factor);
    if (value == 0 || value % factor != 0) continue;
    if (best == nullptr || unit.factor > best->factor) best = &unit;
  }
  if (best == nullptr || best->factor == 1) return std::to_string(value) + std::string(smallest);
  return std::to_string(value / static_cast<std::uint64_t>(best->factor)) + std::string(best->name);
}

constexpr Unit kShownSizes[] = {
    {"B", 1}, {"KiB", kKi}, {"MiB", kKi* kKi}, {"GiB", kKi* kKi* kKi}, {"TiB", kKi* kKi* kKi* kKi}};

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text, std::uint64_t whole_bytes) {
  double number = 0;
  std::uint64_t whole = 0;
  bool is_whole = false;
  std::string_view unit_name;
  if (!split(text, &number, &whole, &is_whole, &unit_name)) {
    return Status{Code::kInvalid, "not a size: write \"12GiB\", \"512MiB\", \"60%\" or bytes"};
  }
  if (unit_name == "%") {
    if (whole_bytes == 0) return Status{Code::kInvalid, "a percentage has no meaning here"};
    if (number > 100) return Status{Code::kInvalid, "a percentage is at most 100%"};
    return static_cast<std::uint64_t>(static_cast<double>(whole_bytes) * (number / 100));
  }
  const Unit* const unit = find_unit(kSizeUnits, unit_name);
  if (unit == nullptr) {
    return Status{Code::kInvalid,
                  "not a unit of size: use KiB, MiB, GiB, TiB, KB, MB, GB, TB or %"};
  }
  return scale(number, whole, is_whole, unit->factor);
}

Result<std::uint64_t> parse_duration(std::string_view text) {
  double number = 0;
  std::uint64_t whole = 0;
  bool is_whole = false;
  std::string_view unit_name;
  if (!split(text, &number, &whole, &is_whole, &unit_name)) {
    return Status{Code::kInvalid, "not a duration: write \"50ms\" or \"2s\""};
  }
  const Unit* const unit = find_unit(kDurationUnits, unit_name);
  if (unit == nullptr) {
    return Status{Code::kInvalid, "a duration needs a unit: ns, us, ms, s or min"};
  }
  return scale(number, whole, is_whole, unit->factor);
}

std::string show_size(std::uint64_t size_bytes) { return show_in(kShownSizes, size_bytes, "B"); }

std::string show_duration(std::uint64_t duration_ns) {
  return show_in(kDurationUnits, duration_ns, "ns");
}

}  // namespace kvmem::config

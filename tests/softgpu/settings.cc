#include "tests/softgpu/settings.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace softgpu {
namespace {

[[noreturn]] void refuse(std::string_view word) {
  std::fprintf(stderr, "softgpu: SOFTGPU: cannot understand '%.*s'; see softgpu.h\n",
               static_cast<int>(word.size()), word.data());
  std::_Exit(2);
}

std::uint64_t number(std::string_view word, std::string_view text) {
  char* end = nullptr;
  const std::string copy(text);
  const std::uint64_t value = std::strtoull(copy.c_str(), &end, 0);
  if (copy.empty() || *end != '\0') refuse(word);
  return value;
}

Settings::Failure failure(std::string_view word, std::string_view text) {
  const std::size_t first = text.find(':');
  const std::size_t second = text.find(':', first + 1);
  if (first == std::string_view::npos || second == std::string_view::npos) refuse(word);
  return {std::string(text.substr(0, first)),
          number(word, text.substr(first + 1, second - first - 1)),
          static_cast<int>(number(word, text.substr(second + 1)))};
}

Settings read() {
  Settings s;
  const char* env = std::getenv("SOFTGPU");  // NOLINT(concurrency-mt-unsafe): once, at cuInit
  std::string_view rest = env != nullptr ? env : "";
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    const std::string_view word = rest.substr(0, comma);
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
    const std::size_t equals = word.find('=');
    if (equals == std::string_view::npos) refuse(word);
    const std::string_view key = word.substr(0, equals);
    const std::string_view value = word.substr(equals + 1);
    if (key == "memory") {
      s.memory_bytes = number(word, value);
    } else if (key == "granularity") {
      s.granularity = number(word, value);
      if (s.granularity != 65536 && s.granularity != 2097152) refuse(word);
    } else if (key == "late_us") {
      s.late_us = number(word, value);
    } else if (key == "seed") {
      s.seed = number(word, value);
    } else if (key == "refuse_numa") {
      s.refuse_numa = number(word, value);
    } else if (key == "fail") {
      s.failures.push_back(failure(word, value));
    } else {
      refuse(word);
    }
  }
  return s;
}

}  // namespace

const Settings& settings() {
  static const auto* const kSettings = new Settings(read());
  return *kSettings;
}

}  // namespace softgpu

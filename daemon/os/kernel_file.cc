#include "os/kernel_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "base/unique_handle.h"

namespace kvmem::os {
namespace {

std::uint64_t number_at(const char* text) {
  while (*text == ' ' || *text == '\t') ++text;
  return *text >= '0' && *text <= '9' ? std::strtoull(text, nullptr, 10) : 0;
}

}  // namespace

std::string kernel_text(const std::string& path) {
  char text[8192];
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  const ssize_t n = ::read(fd.get(), text, sizeof text);
  return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

std::uint64_t kernel_number(const std::string& path) {
  return number_at(kernel_text(path).c_str());
}

std::uint64_t kernel_bytes(const std::string& path, std::string_view key) {
  const std::string text = kernel_text(path);
  const std::size_t at = text.find(key);
  return at == std::string::npos ? 0 : number_at(text.c_str() + at + key.size()) * 1024;
}

}  // namespace kvmem::os

#include "cli/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "base/unique_handle.h"

#ifndef KVMEM_LIB_FROM_BIN
#define KVMEM_LIB_FROM_BIN "../lib"
#endif

namespace kvmem::cli {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> environment_of(const Program& program) {
  std::vector<std::string> out;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : program.environment) {
      replaced |= text.size() > name.size() && text.starts_with(name) && text[name.size()] == '=';
    }
    if (!replaced) out.emplace_back(text);
  }
  for (const auto& [name, value] : program.environment) {
    if (value) out.push_back(name + "=" + *value);
  }
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (std::string& s : strings) out.push_back(s.data());
  out.push_back(nullptr);
  return out;
}

// Async-signal-safe: between fork and exec of a process that may one day have threads.
void detach(const Program& program, int* error_fd) {
  ::setsid();
  const int null_fd = ::open("/dev/null", O_RDWR);
  ::dup2(null_fd, STDIN_FILENO);
  const int log_fd = program.log_fd >= 0 ? program.log_fd : null_fd;
  ::dup2(log_fd, STDOUT_FILENO);
  ::dup2(log_fd, STDERR_FILENO);
  // Out of the way of 3, which the error pipe or the log may be.
  const int error_copy = ::fcntl(*error_fd, F_DUPFD_CLOEXEC, kInheritedFd + 1);
  const int inherited = program.inherited_fd >= 0
                            ? ::fcntl(program.inherited_fd, F_DUPFD_CLOEXEC, kInheritedFd + 1)
                            : -1;
  if (inherited >= 0) ::dup2(inherited, kInheritedFd);
  const unsigned keep = static_cast<unsigned>(error_copy);
  const unsigned first = inherited >= 0 ? kInheritedFd + 1 : kInheritedFd;
  if (keep > first) ::close_range(first, keep - 1, 0);
  ::close_range(keep + 1, ~0U, 0);
  *error_fd = error_copy;
}

[[noreturn]] void become(const Program& program, char* const* argv, char* const* envp,
                         int error_fd) {
  if (program.detached) detach(program, &error_fd);
  ::pthread_sigmask(SIG_SETMASK, &program.signal_mask, nullptr);
  ::execvpe(argv[0], argv, envp);
  const int error = errno;
  static_cast<void>(!::write(error_fd, &error, sizeof(error)));
  ::_exit(127);
}

bool executable(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && ::access(path.c_str(), X_OK) == 0;
}

bool there(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

std::vector<std::string> split(std::string_view text, std::string_view separators) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const std::size_t end = text.find_first_of(separators);
    if (end != 0) out.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return out;
}

bool is_libkvmem(const std::string& path) {
  return fs::path(path).filename().string().starts_with("libkvmem.so");
}

}  // namespace

Started start(const Program& program) {
  std::vector<std::string> arguments = program.argv;
  std::vector<std::string> variables = environment_of(program);
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(variables);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return {-1, errno};
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return {-1, errno};
  if (pid == 0) become(program, argv.data(), envp.data(), write_end.get());
  write_end.reset();
  int error = 0;
  ssize_t got = 0;
  do {
    got = ::read(read_end.get(), &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got != sizeof(error)) return {pid, 0};  // closed by exec
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return {-1, error};
}

std::string own_folder() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path().string();
}

std::string find_daemon(const std::string& option) {
  if (!option.empty()) return executable(option) ? option : "";
  const fs::path own = own_folder();
  std::vector<fs::path> candidates = {own / "kvmemd", own / "../sbin/kvmemd"};
  const char* const path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe)
  for (const std::string& folder : split(path != nullptr ? path : "", ":")) {
    candidates.push_back(fs::path(folder) / "kvmemd");
  }
  for (const char* folder : {"/usr/local/sbin", "/usr/sbin"}) {
    candidates.push_back(fs::path(folder) / "kvmemd");
  }
  for (const fs::path& candidate : candidates) {
    if (executable(candidate)) return fs::absolute(candidate).lexically_normal().string();
  }
  return "";
}

std::string find_library(const std::string& option) {
  if (!option.empty()) return there(option) ? fs::absolute(option).string() : "";
  const fs::path own = own_folder();
  for (const char* folder : {"../lib", KVMEM_LIB_FROM_BIN, "../lib64"}) {
    for (const char* name : {"libkvmem.so.0", "libkvmem.so"}) {
      const fs::path candidate = own / folder / name;
      if (there(candidate)) return fs::absolute(candidate).lexically_normal().string();
    }
  }
  return "";
}

std::string preload_with(const std::string& library, const std::string& already) {
  std::string out = library;
  for (const std::string& path : split(already, ": ")) {
    if (!is_libkvmem(path)) out += ":" + path;
  }
  return out;
}

std::optional<std::string> preload_without_kvmem(const std::string& already) {
  std::string out;
  for (const std::string& path : split(already, ": ")) {
    if (!is_libkvmem(path)) out += (out.empty() ? "" : ":") + path;
  }
  if (out.empty()) return std::nullopt;
  return out;
}

}  // namespace kvmem::cli

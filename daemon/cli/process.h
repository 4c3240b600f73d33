// Starting programs.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvmem::cli {

struct Program {
  std::vector<std::string> argv;  // argv[0] is searched for in PATH unless it has a slash
  // Set, or with nullopt removed, on top of this process's environment.
  std::vector<std::pair<std::string, std::optional<std::string>>> environment;
  // A daemon: own session, so that the terminal's signals pass it by; standard input is empty,
  // output and errors go to `log_fd`, and it inherits no other descriptor but `inherited_fd`, as
  // number 3.
  bool detached = false;
  int log_fd = -1;
  int inherited_fd = -1;
  sigset_t signal_mask{};  // blocked in the child; none by default
};
inline constexpr int kInheritedFd = 3;

struct Started {
  pid_t pid = -1;
  int error = 0;  // errno of fork or exec; then there is no child
};

// Waits until the child runs the program.
Started start(const Program& program);

// The folder of the running kvmemctl.
std::string own_folder();

// The first of these that can be executed: beside kvmemctl, ../sbin, PATH, the system's sbin
// folders. Empty when none.
std::string find_daemon(const std::string& option);

// The first of these that is there: ../lib, ../lib of the installation. Empty when none.
std::string find_library(const std::string& option);

// LD_PRELOAD with `library` in front of what is there, once.
std::string preload_with(const std::string& library, const std::string& already);
// LD_PRELOAD without any libkvmem; nullopt when nothing is left.
std::optional<std::string> preload_without_kvmem(const std::string& already);

}  // namespace kvmem::cli

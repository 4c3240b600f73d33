#include "cli/sweeper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

extern "C" {
#include <sys/pidfd.h>  // glibc 2.36 forgets to say so itself
}

namespace kvmem::cli {
namespace {

constexpr int kStopTimeoutMs = 5000;

struct Note {
  char what = 0;  // 'e' engine, 'd' daemon, 'q' farewell
  pid_t pid = 0;
};

// True when the process ended in time.
bool wait_for(int pidfd, int timeout_ms) {
  pollfd p{pidfd, POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&p, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

void close_all_but(std::vector<int> keep) {
  std::sort(keep.begin(), keep.end());
  unsigned first = 0;
  for (const int fd : keep) {
    const auto next = static_cast<unsigned>(fd);
    if (next > first) ::close_range(first, next - 1, 0);
    first = next + 1;
  }
  ::close_range(first, ~0U, 0);
}

[[noreturn]] void sweep(int pipe, const std::vector<std::string>& paths) {
  UniqueFd engine;
  UniqueFd daemon;
  for (;;) {
    Note note;
    const ssize_t got = ::read(pipe, &note, sizeof(note));
    if (got < 0 && errno == EINTR) continue;
    if (got != sizeof(note)) break;
    if (note.what == 'q') ::_exit(0);
    // A descriptor names this very process, whatever its number is used for later.
    (note.what == 'e' ? engine : daemon).reset(::pidfd_open(note.pid, 0));
  }
  if (engine) static_cast<void>(wait_for(engine.get(), -1));
  if (daemon) {
    ::pidfd_send_signal(daemon.get(), SIGTERM, nullptr, 0);
    if (!wait_for(daemon.get(), kStopTimeoutMs)) {
      ::pidfd_send_signal(daemon.get(), SIGKILL, nullptr, 0);
      static_cast<void>(wait_for(daemon.get(), kStopTimeoutMs));
    }
  }
  std::error_code error;
  for (const std::string& path : paths) std::filesystem::remove_all(path, error);
  ::_exit(0);
}

}  // namespace

Sweeper Sweeper::start(const std::vector<std::string>& paths, const std::vector<int>& keep_fds) {
  Sweeper sweeper;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return sweeper;
  UniqueFd read_end(ends[0]);
  sweeper.pipe_ = UniqueFd(ends[1]);
  sweeper.pid_ = ::fork();
  if (sweeper.pid_ == 0) {
    ::setsid();
    ::prctl(PR_SET_NAME, "kvmem-sweeper");
    std::vector<int> keep = keep_fds;
    keep.push_back(read_end.get());
    close_all_but(keep);
    sweep(read_end.get(), paths);
  }
  if (sweeper.pid_ < 0) sweeper.pipe_.reset();
  return sweeper;
}

void Sweeper::tell(char what, pid_t pid) const {
  if (!pipe_) return;
  const Note note{what, pid};
  // A sweeper that is gone cannot help; SIGPIPE is blocked by the caller.
  static_cast<void>(!::write(pipe_.get(), &note, sizeof(note)));
}

void Sweeper::dismiss() {
  if (!pipe_) return;
  tell('q', 0);
  pipe_.reset();
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

}  // namespace kvmem::cli

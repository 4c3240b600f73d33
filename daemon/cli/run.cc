#include "cli/run.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/unique_handle.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/process.h"
#include "cli/render.h"
#include "cli/scratch.h"
#include "cli/sweeper.h"
#include "config/config.h"

namespace kvmem::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kReadyTimeoutMs = 10'000;
constexpr std::uint64_t kStopTimeoutMs = 5'000;
constexpr unsigned kQuickDeathsMax = 10;
constexpr std::uint64_t kQuickDeathMs = 250;  // after it served
constexpr std::uint64_t kPauseMinMs = 20;
constexpr std::uint64_t kPauseMaxMs = 2'000;
constexpr std::uint64_t kSnapshotMs =
    1'000;  // between looks at the daemon, when a report is asked for
constexpr std::uint64_t kSettleMs = 2'000;
constexpr std::uint64_t kStoreDefaultMaxBytes = std::uint64_t{64} << 30;

constexpr int kSignals[] = {SIGINT,  SIGTERM, SIGHUP,   SIGQUIT, SIGUSR1, SIGUSR2,
                            SIGTSTP, SIGCONT, SIGWINCH, SIGCHLD, SIGPIPE};

std::uint64_t now_ms() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
         static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

std::string environment(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value != nullptr ? value : "";
}

std::string reason(int error) { return std::system_category().message(error); }

void say(const std::string& text) { std::fprintf(stderr, "kvmem: %s\n", text.c_str()); }

std::string how_it_ended(int wait_status) {
  if (WIFSIGNALED(wait_status)) return "signal " + std::to_string(WTERMSIG(wait_status));
  return "exit status " + std::to_string(WEXITSTATUS(wait_status));
}

std::vector<std::string> last_lines(const std::string& path, std::size_t count) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return {};
  constexpr std::streamoff kTailBytes = 16 << 10;
  const std::streamoff size = in.tellg();
  in.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  std::deque<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (line.empty()) continue;
    lines.push_back(printable(line));
    if (lines.size() > count) lines.pop_front();
  }
  return {lines.begin(), lines.end()};
}

class Run {
 public:
  explicit Run(const RunOptions& options) : options_(options) {}

  int run();

 private:
  enum class Daemon { kOff, kStarting, kServing, kWaiting, kGivenUp };

  void take_signals();
  bool daemon_answers();
  bool prepare_private();
  std::string unusable_option() const;
  bool prepare_store(const config::Config& config);
  void start_private();
  int run_engine();

  void spawn_daemon();
  void daemon_is_ready();
  void daemon_died(int wait_status);
  void stop_daemon();

  void wait_for_events(std::uint64_t until_ms);
  void on_signal(const signalfd_siginfo& info);
  void reap();
  void on_time();
  std::uint64_t next_time() const;

  void look();
  void write_report();
  std::string log_path() const { return runtime_.path() + "/kvmemd.log"; }

  const RunOptions& options_;
  std::string socket_;
  std::string library_;
  UniqueFd signals_;
  sigset_t original_mask_{};
  Sweeper sweeper_;
  bool served_ = false;  // a daemon stood ready when the engine started
  int interrupted_ = 0;  // the signal that came before there was an engine

  // The private daemon.
  ScratchDir runtime_;
  ScratchDir store_scratch_;
  std::string store_made_;  // a file of the caller's choice that the run creates, and so removes
  Program daemon_program_;
  Daemon daemon_ = Daemon::kOff;
  pid_t daemon_pid_ = -1;
  UniqueFd ready_;
  std::uint64_t daemon_time_ms_ = 0;  // starting: deadline; serving: since; waiting: until
  unsigned quick_deaths_ = 0;
  unsigned restarts_ = 0;

  pid_t engine_pid_ = -1;
  bool engine_ended_ = false;
  bool stopping_ = false;  // a daemon that dies now is not started again
  rusage engine_usage_{};
  int engine_status_ = 0;
  std::uint64_t engine_started_ms_ = 0;
  std::uint64_t engine_ended_ms_ = 0;

  nlohmann::json last_seen_;
  std::uint64_t next_look_ms_ = UINT64_MAX;
};

void Run::take_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : kSignals) ::sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, &original_mask_);
  // A parent that ignores SIGCHLD would have the engine's status thrown away.
  std::signal(SIGCHLD, SIG_DFL);
  signals_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

bool Run::daemon_answers() {
  const Answer answer = ask(socket_, {wire::ControlOp::kTiers, {}, {}}, 2'000);
  if (!answer.ok() && (options_.verbose || !options_.socket.empty())) {
    say(answer.error + "; using a private one");
  }
  return answer.ok();
}

bool Run::prepare_store(const config::Config& config) {
  std::string path = options_.store;
  if (path == "none") {
    daemon_program_.argv.insert(daemon_program_.argv.end(), {"--store", ""});
    return true;
  }
  if (path.empty() && !config.nvme.path.empty()) return true;  // as configured
  std::error_code error;
  const bool is_folder = !path.empty() && fs::is_directory(path, error);
  if (path.empty() || is_folder) {
    const std::string root = is_folder ? fs::absolute(path).string() : store_root();
    if (root.empty()) {
      say("no folder on a disk for the page store (give one with --store): only pages of files can "
          "leave DRAM");
      return true;
    }
    Result<ScratchDir> scratch = ScratchDir::create(root);
    if (!scratch.ok()) {
      say("cannot make a folder in " + root +
          " for the page store: " + reason(scratch.status().detail()));
      return false;
    }
    store_scratch_ = *std::move(scratch);
    path = store_scratch_.path() + "/store";
  } else if (!fs::exists(path, error)) {
    store_made_ = fs::absolute(path).string();
  }
  std::string size = options_.store_size;
  if (size.empty() && (is_folder || options_.store.empty())) {
    struct statvfs st {};
    std::uint64_t free_bytes = 0;
    if (::statvfs(fs::path(path).parent_path().c_str(), &st) == 0) {
      free_bytes = static_cast<std::uint64_t>(st.f_bavail) * st.f_frsize;
    }
    const std::uint64_t size_bytes =
        align_down(std::min(free_bytes / 10 * 8, kStoreDefaultMaxBytes), kPageBytes);
    if (size_bytes < config::kStoreMinBytes) {
      say(store_scratch_.path() + " has too little room for a page store (" +
          human_bytes(free_bytes) + " free): only pages of files can leave DRAM");
      store_scratch_.remove();
      return true;
    }
    size = std::to_string(size_bytes);
  }
  daemon_program_.argv.insert(daemon_program_.argv.end(), {"--store", fs::absolute(path).string()});
  if (!size.empty())
    daemon_program_.argv.insert(daemon_program_.argv.end(), {"--store-size", size});
  return true;
}

// False after one line that says why there can be no private daemon.
bool Run::prepare_private() {
  const std::string program = find_daemon(options_.kvmemd);
  if (program.empty()) {
    say("no kvmemd beside kvmemctl, in ../sbin or in PATH; the engine runs without kvmem");
    return false;
  }
  Result<ScratchDir> runtime = ScratchDir::create(runtime_root());
  if (!runtime.ok()) {
    say("cannot make a folder in " + runtime_root() + ": " + reason(runtime.status().detail()) +
        "; the engine runs without kvmem");
    return false;
  }
  runtime_ = *std::move(runtime);
  if (options_.socket.empty()) socket_ = runtime_.path() + "/kvmemd.sock";

  std::string config_path = options_.config;
  if (config_path.empty()) {
    config_path = runtime_.path() + "/kvmemd.toml";
    std::ofstream(config_path)
        << "# kvmemctl run: defaults; what differs is on kvmemd's command line\n";
  }
  daemon_program_.argv = {program,         "--foreground",
                          "--config",      fs::absolute(config_path),
                          "--socket",      socket_,
                          "--runtime-dir", runtime_.path(),
                          "--ready-fd",    std::to_string(kInheritedFd)};
  for (const auto& [option, value] :
       {std::pair("--dram", options_.dram), std::pair("--cxl", options_.cxl)}) {
    if (!value.empty()) daemon_program_.argv.insert(daemon_program_.argv.end(), {option, value});
  }
  daemon_program_.detached = true;
  daemon_program_.environment = {{"LD_PRELOAD", preload_without_kvmem(environment("LD_PRELOAD"))},
                                 {"NOTIFY_SOCKET", std::nullopt},
                                 {"LISTEN_FDS", std::nullopt}};
  const config::Loaded loaded = config::load(options_.config, config::Machine::detect());
  return prepare_store(loaded.config);
}

void Run::spawn_daemon() {
  int ends[2];
  const UniqueFd log(::open(log_path().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    daemon_died(0);
    return;
  }
  ready_ = UniqueFd(ends[0]);
  const UniqueFd write_end(ends[1]);
  daemon_program_.log_fd = log.get();
  daemon_program_.inherited_fd = write_end.get();
  const Started started = start(daemon_program_);
  if (started.pid < 0) {
    say("cannot start " + daemon_program_.argv[0] + ": " + reason(started.error));
    daemon_died(0);
    return;
  }
  daemon_pid_ = started.pid;
  sweeper_.daemon_is(daemon_pid_);
  daemon_ = Daemon::kStarting;
  daemon_time_ms_ = now_ms() + kReadyTimeoutMs;
}

void Run::daemon_is_ready() {
  std::array<char, 16> word{};
  const ssize_t got = ::read(ready_.get(), word.data(), word.size());
  ready_.reset();
  if (got <= 0) return;  // it died, which SIGCHLD tells, or it hangs, which the deadline tells
  daemon_ = Daemon::kServing;
  daemon_time_ms_ = now_ms();
  if (options_.json_report.empty()) return;
  next_look_ms_ = now_ms() + kSnapshotMs;
}

void Run::daemon_died(int wait_status) {
  const bool had_served = daemon_ == Daemon::kServing;
  const bool quick = !had_served || now_ms() - daemon_time_ms_ < kQuickDeathMs;
  daemon_pid_ = -1;
  ready_.reset();
  if (stopping_ || !served_) {  // or the first start has failed
    daemon_ = Daemon::kOff;
    return;
  }
  quick_deaths_ = quick ? quick_deaths_ + 1 : 0;
  if (quick_deaths_ >= kQuickDeathsMax) {
    daemon_ = Daemon::kGivenUp;
    say("the daemon died " + std::to_string(kQuickDeathsMax) +
        " times in a row and is not started again: the engine will wait for pages that are not in "
        "DRAM; stop it. The daemon's last words (" +
        log_path() + "):");
    for (const std::string& line : last_lines(log_path(), 5)) say("  " + line);
    return;
  }
  if (had_served) {
    say("the daemon died (" + how_it_ended(wait_status) + "); starting it again");
  }
  ++restarts_;
  if (quick_deaths_ <= 1) {
    spawn_daemon();
    return;
  }
  daemon_ = Daemon::kWaiting;
  daemon_time_ms_ = now_ms() + std::min(kPauseMinMs << (quick_deaths_ - 2), kPauseMaxMs);
}

void Run::start_private() {
  if (!prepare_private()) return;
  std::vector<std::string> paths;
  std::vector<int> locks;
  if (!options_.keep) {
    for (const ScratchDir* scratch : {&runtime_, &store_scratch_}) {
      if (scratch->empty()) continue;
      paths.push_back(scratch->path());
      locks.push_back(scratch->lock_fd());
    }
    if (!store_made_.empty()) paths.push_back(store_made_);
  }
  sweeper_ = Sweeper::start(paths, locks);
  spawn_daemon();
  while (daemon_ == Daemon::kStarting && interrupted_ == 0) wait_for_events(next_time());
  served_ = daemon_ == Daemon::kServing;
  if (served_) {
    if (options_.verbose) {
      say("private daemon " + std::to_string(daemon_pid_) + " at " + socket_ + ", log " +
          log_path());
    }
    return;
  }
  if (interrupted_ != 0) return;
  stop_daemon();
  const std::vector<std::string> words = last_lines(log_path(), 1);
  say("kvmemd cannot serve" + (words.empty() ? "" : " (" + words.front() + ")") +
      "; the engine runs without kvmem");
}

void Run::stop_daemon() {
  stopping_ = true;
  if (daemon_pid_ < 0) return;
  ::kill(daemon_pid_, SIGTERM);
  const std::uint64_t deadline = now_ms() + kStopTimeoutMs;
  while (daemon_pid_ >= 0 && now_ms() < deadline) wait_for_events(deadline);
  if (daemon_pid_ < 0) return;
  say("the daemon does not stop; killing it");
  ::kill(daemon_pid_, SIGKILL);
  while (daemon_pid_ >= 0) wait_for_events(now_ms() + 100);
}

std::uint64_t Run::next_time() const {
  std::uint64_t next = next_look_ms_;
  if (daemon_ == Daemon::kStarting || daemon_ == Daemon::kWaiting) {
    next = std::min(next, daemon_time_ms_);
  }
  return next;
}

void Run::on_time() {
  const std::uint64_t now = now_ms();
  if (daemon_ == Daemon::kWaiting && now >= daemon_time_ms_) spawn_daemon();
  if (daemon_ == Daemon::kStarting && now >= daemon_time_ms_ && daemon_pid_ >= 0) {
    ::kill(daemon_pid_, SIGKILL);  // its end is then a quick death
    daemon_time_ms_ = now + kReadyTimeoutMs;
    if (!served_) daemon_ = Daemon::kOff;
  }
  if (now >= next_look_ms_) look();
}

void Run::wait_for_events(std::uint64_t until_ms) {
  std::array<pollfd, 2> fds{{{signals_.get(), POLLIN, 0}, {ready_ ? ready_.get() : -1, POLLIN, 0}}};
  const std::uint64_t now = now_ms();
  const int timeout =
      until_ms == UINT64_MAX
          ? -1
          : static_cast<int>(std::min<std::uint64_t>(until_ms - std::min(until_ms, now), 60'000));
  if (::poll(fds.data(), fds.size(), timeout) > 0) {
    if (fds[1].revents != 0) daemon_is_ready();
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) on_signal(info);
  }
  on_time();
}

void Run::on_signal(const signalfd_siginfo& info) {
  const int signal = static_cast<int>(info.ssi_signo);
  if (signal == SIGCHLD) {
    reap();
    return;
  }
  if (signal == SIGPIPE) return;
  const bool has_engine = engine_pid_ >= 0 && !engine_ended_;
  if (!has_engine) {
    if (signal == SIGINT || signal == SIGTERM || signal == SIGHUP || signal == SIGQUIT) {
      interrupted_ = signal;
    }
    return;
  }
  // What the terminal sends goes to the whole process group: the engine has it already.
  const bool from_a_process = info.ssi_code <= 0;
  if (from_a_process && static_cast<pid_t>(info.ssi_pid) != engine_pid_) {
    ::kill(engine_pid_, signal);
  }
  if (signal == SIGTSTP) ::raise(SIGSTOP);  // the shell waits for kvmemctl to stop
}

void Run::reap() {
  for (;;) {
    int status = 0;
    rusage usage{};
    const pid_t pid = ::wait4(-1, &status, WNOHANG, &usage);
    if (pid <= 0) return;
    if (pid == engine_pid_) {
      engine_ended_ = true;
      engine_status_ = status;
      engine_usage_ = usage;
      engine_ended_ms_ = now_ms();
    } else if (pid == daemon_pid_) {
      daemon_died(status);
    }
  }
}

// Keeps what the daemon shows while the engine is still connected.
void Run::look() {
  next_look_ms_ = UINT64_MAX;
  if (engine_ended_ || options_.json_report.empty()) return;
  const Answer answer = ask(socket_, {wire::ControlOp::kStatus, {}, {}}, 500);
  if (answer.ok()) last_seen_ = answer.json;
  next_look_ms_ = now_ms() + kSnapshotMs;
}

void Run::write_report() {
  if (options_.json_report.empty()) return;
  nlohmann::json report = nlohmann::json::object();
  const std::uint64_t deadline = now_ms() + kReadyTimeoutMs;
  while ((daemon_ == Daemon::kStarting || daemon_ == Daemon::kWaiting) && now_ms() < deadline) {
    wait_for_events(deadline);
  }
  if (served_) {
    Answer answer = ask(socket_, {wire::ControlOp::kStatus, {}, {}});
    // A region outlives its last engine by the reads that are under way.
    const std::uint64_t settled = now_ms() + kSettleMs;
    while (answer.ok() && answer.json.value("engines", nlohmann::json::array()).empty() &&
           !answer.json.value("regions", nlohmann::json::array()).empty() && now_ms() < settled) {
      wait_for_events(now_ms() + 10);
      answer = ask(socket_, {wire::ControlOp::kStatus, {}, {}});
    }
    if (answer.ok()) report = answer.json;
    if (!answer.ok()) report["error"] = answer.error;
  }
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  report["run"] = {
      {"argv", options_.engine},
      {"served", served_},
      {"private_daemon", daemon_program_.detached},
      {"daemon_restarts", restarts_},
      {"exit_status", WIFEXITED(engine_status_) ? WEXITSTATUS(engine_status_) : -1},
      {"signal", WIFSIGNALED(engine_status_) ? WTERMSIG(engine_status_) : 0},
      {"wall_s", static_cast<double>(engine_ended_ms_ - engine_started_ms_) / 1000},
      {"user_s", seconds(engine_usage_.ru_utime)},
      {"system_s", seconds(engine_usage_.ru_stime)},
  };
  if (last_seen_.is_object()) report["last_seen"] = last_seen_;
  std::ofstream out(options_.json_report);
  // Names from engines may not be UTF-8.
  out << report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  out.close();
  if (!out) say("cannot write " + options_.json_report + ": " + reason(errno));
}

int Run::run_engine() {
  Program engine;
  engine.argv = options_.engine;
  engine.signal_mask = original_mask_;
  if (served_) {
    engine.environment = {{"LD_PRELOAD", preload_with(library_, environment("LD_PRELOAD"))},
                          {"KVMEM_SOCKET", socket_}};
  }
  const Started started = start(engine);
  if (started.pid < 0) {
    say("cannot run " + printable(options_.engine.front()) + ": " + reason(started.error));
    return started.error == ENOENT ? kExitNotFound : kExitCannotExecute;
  }
  engine_pid_ = started.pid;
  engine_started_ms_ = now_ms();
  sweeper_.engine_is(engine_pid_);
  if (served_ && !options_.json_report.empty()) next_look_ms_ = now_ms() + kSnapshotMs;
  while (!engine_ended_) wait_for_events(next_time());
  next_look_ms_ = UINT64_MAX;

  if (WIFSIGNALED(engine_status_) && WTERMSIG(engine_status_) == SIGBUS &&
      daemon_program_.detached) {
    say("the engine touched memory that is lost (SIGBUS); the daemon's last words:");
    for (const std::string& line : last_lines(log_path(), 5)) say("  " + line);
  }
  write_report();
  if (served_ && daemon_program_.detached) {
    const Answer answer = ask(socket_, {wire::ControlOp::kStatus, {}, {}}, 2'000);
    const nlohmann::json* counters = answer.ok() ? &answer.json["counters"] : nullptr;
    if (counters != nullptr && counters->value("frames_over_budget", 0) > 0) {
      say("the engine had more DRAM than it was given: what it wrote had nowhere to go (see "
          "--store, --store-size)");
    }
  }
  return WIFSIGNALED(engine_status_) ? 128 + WTERMSIG(engine_status_) : WEXITSTATUS(engine_status_);
}

// What was named on the command line must be there: an engine that was to run in little memory
// shall not start without a limit because of a misspelt path. Empty: all is well.
std::string Run::unusable_option() const {
  if (!options_.library.empty() && find_library(options_.library).empty())
    return "--library: there is no " + printable(options_.library);
  if (!options_.kvmemd.empty() && find_daemon(options_.kvmemd).empty())
    return "--kvmemd: " + printable(options_.kvmemd) + " is not a program";
  std::error_code error;
  if (const std::string& store = options_.store; !store.empty() && store != "none") {
    const fs::path folder = fs::absolute(store).parent_path();
    if (!fs::is_directory(folder, error))
      return "--store: there is no folder " + printable(folder.string()) + ": make it first";
    if (fs::exists(store, error) && !fs::is_directory(store, error) &&
        !fs::is_regular_file(store, error) && !fs::is_block_file(store, error)) {
      return "--store: " + printable(store) + " is no file, folder or block device";
    }
  }
  if (const std::string& report = options_.json_report; !report.empty()) {
    const bool was_there = fs::exists(report, error);
    if (!std::ofstream(report, std::ios::app))
      return "--json-report: cannot write " + printable(report);
    if (!was_there) fs::remove(report, error);
  }
  return "";
}

int Run::run() {
  if (options_.engine.empty()) {
    say("no engine to run: kvmemctl run [options] -- ENGINE ARGS...");
    return kExitRunFailed;
  }
  // Only what was asked for is checked here: a mistake is better told before the engine runs.
  const bool asks_private = options_.private_daemon || !options_.dram.empty() ||
                            !options_.cxl.empty() || !options_.store.empty() ||
                            !options_.store_size.empty() || !options_.config.empty();
  config::Overrides overrides;
  if (!options_.dram.empty()) overrides.dram = options_.dram;
  if (!options_.cxl.empty()) overrides.cxl = options_.cxl;
  if (!options_.store_size.empty()) overrides.store_size = options_.store_size;
  const config::Loaded loaded = config::load(options_.config, config::Machine::detect(), overrides);
  if (asks_private && !loaded.ok()) {
    for (const config::Problem& problem : loaded.problems) say(problem.text());
    return kExitRunFailed;
  }
  if (const std::string fault = unusable_option(); !fault.empty()) {
    say(fault);
    return kExitRunFailed;
  }
  take_signals();
  socket_ = socket_path(options_.socket);
  if (!socket_.starts_with('/')) socket_ = fs::absolute(socket_).string();
  library_ = find_library(options_.library);
  if (library_.empty()) {
    say("no libkvmem.so beside kvmemctl; the engine runs without kvmem");
  } else if (library_.find_first_of(": ") != std::string::npos) {
    say("LD_PRELOAD cannot name " + library_ +
        " (a space or colon in it): install kvmem elsewhere; "
        "the engine runs without kvmem");
    library_.clear();
  } else if (!asks_private && daemon_answers()) {
    served_ = true;
  } else {
    start_private();
  }

  int exit_code = 128 + interrupted_;
  if (interrupted_ == 0) exit_code = run_engine();
  stop_daemon();
  if (options_.keep) {
    for (ScratchDir* scratch : {&runtime_, &store_scratch_}) {
      if (!scratch->empty()) say("kept " + scratch->path());
      scratch->keep();
    }
  } else if (!store_made_.empty()) {
    std::error_code error;
    fs::remove(store_made_, error);
  }
  if (served_ && daemon_program_.detached) ::unlink(socket_.c_str());
  runtime_.remove();
  store_scratch_.remove();
  sweeper_.dismiss();
  return exit_code;
}

}  // namespace

int run(const RunOptions& options) { return Run(options).run(); }

}  // namespace kvmem::cli

// kvmemd: options, configuration, signals; then the loop until told to stop.

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "config/config.h"
#include "loop/loop.h"
#include "os/clock.h"
#include "os/log.h"
#include "os/memory.h"
#include "os/numa.h"
#include "os/priority.h"
#include "os/rights.h"
#include "os/service.h"
#include "os/socket.h"
#include "os/timer.h"
#include "os/watch.h"
#include "probe/probes.h"
#include "server/server.h"

namespace kvmem {
namespace {

constexpr int kExitUsage = 2;
constexpr std::uint64_t kHousekeepNs = 1'000'000'000;

constexpr char kUsage[] =
    "usage: kvmemd [--config FILE] [--socket PATH] [--runtime-dir DIR] [--dram SIZE]\n"
    "              [--cxl SIZE] [--store PATH] [--store-size SIZE] [--ready-fd N] [--foreground]\n"
    "\n"
    "The daemon of kvmem: moves engines' memory between DRAM, CXL memory, NVMe and model files.\n"
    "Without --config, /etc/kvmem/kvmemd.toml is read if it is there.\n"
    "kvmemctl config check FILE tells what is wrong with a file; SIGHUP reads it again.\n";

struct Options {
  std::string config_path;
  config::Overrides overrides;
  int ready_fd = -1;
};

// The exit code, or -1 to go on.
int parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--help" || name == "-h") {
      std::fputs(kUsage, stdout);
      return 0;
    }
    if (name == "--foreground") continue;  // it never leaves the foreground
    if (i + 1 >= argc) {
      std::fprintf(stderr, "kvmemd: %s: unknown option, or its value is missing\n%s", argv[i],
                   kUsage);
      return kExitUsage;
    }
    const std::string value = argv[++i];
    if (name == "--config") {
      options.config_path = value;
    } else if (name == "--socket") {
      options.overrides.socket = value;
    } else if (name == "--runtime-dir") {
      options.overrides.runtime_dir = value;
    } else if (name == "--dram") {
      options.overrides.dram = value;
    } else if (name == "--cxl") {
      options.overrides.cxl = value;
    } else if (name == "--store") {
      options.overrides.store = value;
    } else if (name == "--store-size") {
      options.overrides.store_size = value;
    } else if (name == "--ready-fd") {
      if (std::from_chars(value.data(), value.data() + value.size(), options.ready_fd).ec !=
              std::errc{} ||
          options.ready_fd < 3) {
        std::fprintf(stderr, "kvmemd: --ready-fd: %s is not a descriptor number\n", value.c_str());
        return kExitUsage;
      }
    } else {
      std::fprintf(stderr, "kvmemd: unknown option %s\n%s", argv[i - 1], kUsage);
      return kExitUsage;
    }
  }
  return -1;
}

os::MemoryKind choose_memory(const config::Config& config, std::string& warning) {
  using config::HugePages;
  const std::uint64_t wanted = config.dram.budget_pages() + config.cxl.budget_pages();
  if (config.dram.huge_pages != HugePages::kOff) {
    const std::uint64_t available = os::huge_tlb_pages_available();
    if (available >= wanted || config.dram.huge_pages == HugePages::kRequire)
      return os::MemoryKind::kHugeTlb;
    char text[256];
    std::snprintf(text, sizeof text,
                  "huge TLB pages: %llu of %llu wanted, so %s pages are used and page-table edits "
                  "cost 50 times more; "
                  "set vm.nr_hugepages=%llu",
                  static_cast<unsigned long long>(available),
                  static_cast<unsigned long long>(wanted),
                  os::huge_shmem_available() ? "transparent huge" : "4 KiB",
                  static_cast<unsigned long long>(wanted));
    warning = text;
  }
  return os::ordinary_memory();
}

// Bytes a second between DRAM and CXL memory.
std::uint64_t place_limit(const config::Config& config) {
  return os::may_move_shared_pages() ? config.cxl.migrate_limit_bytes : 0;
}

// What keeps the CXL tier from working as it should, and what to do about it.
std::vector<std::string> cxl_warnings(const config::Config& config) {
  std::vector<std::string> warnings;
  if (config.cxl.budget_bytes == 0) return warnings;
  if (!os::may_move_shared_pages()) {
    warnings.emplace_back(
        "CXL memory: without CAP_SYS_NICE pages stay where they first came; run kvmemd as root or "
        "by the systemd unit");
  }
  if (os::is_numa_balancing()) {
    warnings.emplace_back(
        "CXL memory: kernel.numa_balancing is on, and moves pages between nodes against kvmemd: "
        "sysctl kernel.numa_balancing=0");
  }
  return warnings;
}

constexpr rlim_t kDescriptorsMax = 65536;  // as LimitNOFILE in kvmemd.service.in

// Three for each engine, two for each region: the usual soft limit of 1,024 is soon spent.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::max(limit.rlim_cur, std::min<rlim_t>(limit.rlim_max, kDescriptorsMax));
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

struct Daemon {
  Options options;
  config::Machine machine;
  config::Config config;
  os::Service service;
  std::unique_ptr<loop::Loop> loop;
  std::unique_ptr<server::Server> server;
  UniqueFd signals;
  os::Watch signal_watch;
  os::Timer housekeeping;
  bool stop = false;

  void reload() {
    (void)service.reloading();
    const config::Loaded loaded = config::load(options.config_path, machine, options.overrides);
    if (!loaded.ok()) {
      for (const auto& problem : loaded.problems) {
        os::log(os::Severity::kError, "configuration not taken over: %s", problem.text().c_str());
      }
    } else {
      for (const auto& change : config::diff(config, loaded.config)) {
        os::log(os::Severity::kInfo, "%s: %s -> %s%s", change.key, change.from.c_str(),
                change.to.c_str(), change.live ? "" : " (not before a restart)");
      }
      config = config::with_live_changes(config, loaded.config);
      loop->set_sampling(config.policy.sampling);
      loop->set_cxl(config.cxl.budget_pages(), place_limit(config));
      server->apply(config);
      set_log_level();
    }
    (void)service.ready();
  }

  void set_log_level() const {
    static constexpr os::Severity kLevels[] = {os::Severity::kError, os::Severity::kWarning,
                                               os::Severity::kInfo, os::Severity::kDebug};
    os::set_log_level(kLevels[static_cast<std::size_t>(config.log.level)]);
  }

  void on_signal() {
    signalfd_siginfo info{};
    while (::read(signals.get(), &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGHUP) {
        reload();
      } else {
        stop = true;
      }
    }
  }

  void housekeep() {
    if (stop) return;
    server->housekeep(os::now_ns());
    (void)service.watchdog();
    housekeeping.start(loop->ring(), kHousekeepNs, this,
                       [](void* self) { static_cast<Daemon*>(self)->housekeep(); });
  }
};

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash == 0 ? 1 : slash);
}

int fail(const char* doing, const Status& status) {
  os::log(os::Severity::kError, "%s: %s", doing, os::reason_of(status).c_str());
  return 1;
}

int run(int argc, char** argv) {
  Daemon daemon;
  if (const int code = parse(argc, argv, daemon.options); code >= 0) return code;
  if (daemon.options.config_path.empty() && ::access(config::kDefaultPath, R_OK) == 0) {
    daemon.options.config_path = config::kDefaultPath;
  }
  daemon.machine = config::Machine::detect();
  const config::Loaded loaded =
      config::load(daemon.options.config_path, daemon.machine, daemon.options.overrides);
  if (!loaded.ok()) {
    for (const auto& problem : loaded.problems)
      os::log(os::Severity::kError, "%s", problem.text().c_str());
    return kExitUsage;
  }
  daemon.config = loaded.config;
  daemon.set_log_level();
  daemon.service = os::Service::from_environment();

  // Signals are read on the loop; workers inherit the mask.
  sigset_t handled;
  sigemptyset(&handled);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&handled, signal);
  ::pthread_sigmask(SIG_BLOCK, &handled, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  daemon.signals = UniqueFd(::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!daemon.signals) return fail("signals", Status::from_errno("signalfd"));

  // Engines' threads wait for this loop while their cores are busy computing: it goes first where
  // it may. Workers inherit it.
  os::go_first();

  const config::Config& config = daemon.config;
  const std::string& runtime_dir = config.daemon.runtime_dir;
  for (const std::string& dir : {runtime_dir, parent_of(config.daemon.socket)}) {
    if (::mkdir(dir.c_str(), 0755) != 0 && errno != EEXIST)
      return fail(dir.c_str(), Status::from_errno("mkdir"));
  }

  // While there are rights and no threads.
  auto probes = probe::Probes::start({.enabled = config.ebpf.enable,
                                      .store_path = config.nvme.path,
                                      .gpu_driver = config.gpu.driver});
  if (const Status status = os::drop_capabilities(!config.cxl.nodes.empty()); !status.ok())
    return fail("capabilities", status);

  raise_descriptor_limit();
  loop::LoopOptions options;
  options.dram_pages = config.dram.budget_pages();
  options.cxl_pages = config.cxl.budget_pages();
  options.cxl_nodes = config.cxl.nodes;
  for (const os::NumaNode& node : daemon.machine.nodes) {
    if (!config.cxl.nodes.empty() && !config.cxl.nodes.has(node.number))
      options.dram_nodes.add(node.number);
  }
  options.place_bytes_per_s = place_limit(config);
  if (config.policy.prefetch_depth) options.prefetch_depth = *config.policy.prefetch_depth;
  options.sampling = config.policy.sampling;
  std::string warning;
  options.memory_kind = choose_memory(config, warning);
  options.huge_required = config.dram.huge_pages == config::HugePages::kRequire;
  options.store_path = config.nvme.path;
  options.store_bytes = config.nvme.size_bytes;
  options.sync_interval_ns = config.nvme.sync_interval_ns;
  auto loop = loop::Loop::create(options);
  if (!loop.ok())
    return fail(config.nvme.path.empty() ? "start" : config.nvme.path.c_str(), loop.status());
  daemon.loop = *std::move(loop);

  std::vector<UniqueFd> handed = daemon.service.take_listen_fds();
  UniqueFd listener;
  if (!handed.empty()) {
    listener = std::move(handed[0]);
    ::fcntl(listener.get(), F_SETFL, ::fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
  } else {
    auto listening = os::listen_at(config.daemon.socket, config.daemon.mode);
    if (!listening.ok()) return fail(config.daemon.socket.c_str(), listening.status());
    listener = *std::move(listening);
    if (!config.daemon.group.empty()) {
      // NOLINTNEXTLINE(concurrency-mt-unsafe): this thread alone asks
      const group* owner = ::getgrnam(config.daemon.group.c_str());
      if (owner == nullptr)
        return fail("daemon.group", Status(Code::kInvalid, "there is no such group"));
      if (::chown(config.daemon.socket.c_str(), static_cast<uid_t>(-1), owner->gr_gid) != 0) {
        return fail("daemon.group", Status::from_errno("chown"));
      }
    }
  }
  daemon.server = std::make_unique<server::Server>(*daemon.loop, std::move(listener), runtime_dir,
                                                   config, std::move(probes));
  std::vector<std::string> warnings = cxl_warnings(config);
  if (!warning.empty()) warnings.push_back(warning);
  for (const std::string& text : warnings) {
    os::log(os::Severity::kWarning, "%s", text.c_str());
    daemon.server->add_warning(text);
  }
  if (const Status status = daemon.server->start(); !status.ok()) return fail("start", status);
  daemon.signal_watch.start(
      daemon.loop->ring(), daemon.signals.get(), &daemon,
      [](void* self, std::uint32_t) { static_cast<Daemon*>(self)->on_signal(); }, [](void*) {});
  daemon.housekeep();
  (void)daemon.service.ready();
  if (daemon.options.ready_fd >= 0) {
    (void)!::write(daemon.options.ready_fd, "READY\n", 6);
    ::close(daemon.options.ready_fd);
  }

  Status status;
  while (!daemon.stop && status.ok()) status = daemon.loop->run_once();
  (void)daemon.service.stopping();
  daemon.signal_watch.stop();
  daemon.housekeeping.stop();
  daemon.server->stop();
  while (!daemon.signal_watch.idle() || daemon.housekeeping.busy()) {
    if (!daemon.loop->run_once().ok()) break;
  }
  if (handed.empty()) (void)::unlink(config.daemon.socket.c_str());
  daemon.server.reset();
  daemon.loop.reset();
  return status.ok() ? 0 : fail("loop", status);
}

}  // namespace
}  // namespace kvmem

int main(int argc, char** argv) { return kvmem::run(argc, argv); }

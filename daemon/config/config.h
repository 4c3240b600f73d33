// kvmemd's configuration: a TOML file over defaults, command line over both.
//
// Every key is described once, in the table of config.cc: how it is read, what it may be, and
// whether a running daemon can take it over (SIGHUP). Reading never stops at the first fault: all
// problems come back, each naming where it is, the key, what is wrong and what to write instead.
// A Config is only usable when there was none. Percentages are already bytes or pages in it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/page.h"
#include "config/units.h"
#include "os/numa.h"

namespace kvmem::config {

inline constexpr const char* kDefaultPath = "/etc/kvmem/kvmemd.toml";
inline constexpr const char* kDefaultSocket = "/run/kvmem/kvmemd.sock";
inline constexpr std::uint64_t kDramBudgetMinBytes = 64 << 20;
inline constexpr std::uint64_t kStoreMinBytes = 256 << 20;
// What comes in during an hour may be saved up: the largest block, 64 MiB, must fit into it.
inline constexpr std::uint64_t kWriteBudgetMinBytes = 24 * (std::uint64_t{64} << 20);

// What percentages refer to.
struct Machine {
  std::uint64_t memory_bytes = 0;   // MemTotal, or the smallest memory.max above this process
  std::vector<os::NumaNode> nodes;  // that have memory

  // Reads /proc, /sys/devices/system/node and /sys/fs/cgroup below `root`, which only tests give.
  static Machine detect(const std::string& root = "");
};

enum class HugePages : std::uint8_t {
  kAuto,     // hugetlb pages where the pool has them, else THP or 4 KiB, said once
  kRequire,  // regions that cannot have hugetlb pages are refused, so their engines pass through
  kOff,      // never hugetlb
};

enum class LogLevel : std::uint8_t { kError, kWarning, kInfo, kDebug };

struct Config {
  struct Daemon {
    std::string socket = kDefaultSocket;
    std::uint32_t mode = 0660;  // of the socket; ignored for a socket that systemd hands over
    std::string group;          // of the socket; empty: the daemon's own
    std::string runtime_dir;    // locks and leases; never empty: the socket's directory
  } daemon;
  struct Dram {
    std::uint64_t budget_bytes = kDramBudgetMinBytes;  // frames, all regions together; whole pages
    HugePages huge_pages = HugePages::kAuto;

    std::uint64_t budget_pages() const { return budget_bytes / kPageBytes; }
  } dram;
  struct Cxl {
    os::NodeSet nodes;               // those with memory and no CPUs, or the ones that were named
    std::uint64_t budget_bytes = 0;  // frames there, beside dram.budget; 0: none
    std::uint64_t migrate_limit_bytes = 0;  // a second, between there and DRAM, both ways together

    std::uint64_t budget_pages() const { return budget_bytes / kPageBytes; }
  } cxl;
  struct Nvme {
    std::string path;  // file or block device; empty: no NVMe tier, only origin pages leave DRAM
    std::uint64_t size_bytes = kStoreMinBytes;
    std::uint64_t sync_interval_ns = 0;
  } nvme;
  struct Gpu {
    std::optional<std::uint64_t> budget_bytes;  // of each GPU's memory, for all engines together
    std::string driver;  // libcuda.so.1 whose users are watched; empty: where it usually lies
  } gpu;
  struct Ebpf {
    bool enable = true;  // probes of the kernel, where the daemon may
  } ebpf;
  struct Cache {                    // of blocks of KV cache, for engines that ask for it
    std::uint64_t dram_bytes = 0;   // of dram.budget; taken from it when the first engine asks
    std::uint64_t store_bytes = 0;  // of nvme.size, at most
    std::string policy = "kvmem";   // of policy::block_policy_names()
    bool write_through = true;
    std::uint64_t write_bytes_per_day = 0;  // to the store; 0: no limit

    std::uint64_t dram_pages() const { return dram_bytes / kPageBytes; }
    std::uint64_t store_pages() const { return store_bytes / kPageBytes; }
  } cache;
  struct Quota {
    std::uint64_t per_uid_dram_bytes = 0;  // anonymous regions of a uid: no more than both
    std::uint64_t per_uid_store_bytes = 0;
    std::uint32_t sessions_max = 0;  // per uid
    std::uint32_t regions_max = 0;   // per uid
  } quota;
  struct Policy {
    std::optional<std::uint32_t> prefetch_depth;  // pages; empty: as deep as the disk needs
    bool sampling = true;                         // minor-fault access sampling
  } policy;
  struct Log {
    LogLevel level = LogLevel::kInfo;
  } log;
};

// Command line values, each in place of one key. They are checked like the file's.
struct Overrides {
  std::optional<std::string> socket;       // --socket
  std::optional<std::string> runtime_dir;  // --runtime-dir
  std::optional<std::string> dram;         // --dram: dram.budget
  std::optional<std::string> cxl;          // --cxl: cxl.budget
  std::optional<std::string> store;        // --store: nvme.path
  std::optional<std::string> store_size;   // --store-size: nvme.size
};

struct Problem {
  std::uint32_t line = 0;  // in the file; 0: elsewhere
  std::string where;       // "kvmemd.toml:7", "--dram", or "defaults"
  std::string key;         // "dram.budget"; empty when the file itself cannot be read
  std::string what;        // what is wrong
  std::string remedy;

  std::string text() const;  // "kvmemd.toml:7: dram.budget: WHAT; REMEDY"
};

struct Loaded {
  Config config;
  std::vector<Problem> problems;

  bool ok() const { return problems.empty(); }
};

// Reads `path`. A file that is not there is a problem, except that an empty path means defaults.
Loaded load(const std::string& path, const Machine& machine, const Overrides& overrides = {});

// As load(), from text; `name` stands for the path in problems.
Loaded parse(std::string_view text, const std::string& name, const Machine& machine,
             const Overrides& overrides = {});

// A key whose value differs between two configurations, for the word on a SIGHUP.
struct Change {
  const char* key = nullptr;
  std::string from;
  std::string to;
  bool live = false;  // a running daemon takes it over; else it needs a restart
};
std::vector<Change> diff(const Config& running, const Config& wanted);

// `running` with every live key taken from `wanted`.
Config with_live_changes(const Config& running, const Config& wanted);

// One row per key, in the order of the file, for documentation and `kvmemctl config keys`.
struct KeyHelp {
  const char* key = nullptr;
  std::string default_value;  // as written in TOML
  bool live = false;
  const char* help = nullptr;
};
std::vector<KeyHelp> keys();

// "key = value" for every key as TOML, percentages resolved.
std::string show(const Config& config);

}  // namespace kvmem::config

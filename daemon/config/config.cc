#include "config/config.h"

#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>
#include <utility>
#include <variant>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "policy/block_policy.h"

namespace kvmem::config {
namespace {

using Value = std::variant<bool, std::int64_t, double, std::string>;

struct Fault {
  std::string what;
  std::string remedy;
};
using Read = std::optional<Fault>;  // empty: read

struct Field {
  const char* key;
  const char* default_toml;
  bool live;
  const char* help;
  // Later fields may use earlier ones: a percentage of the budget follows the budget.
  Read (*read)(const Value&, const Machine&, Config&);
  std::string (*show)(const Config&);
};

// As a TOML string.
std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kHex[] = "0123456789ABCDEF";
      out += std::string("\\u00") + kHex[c >> 4] + kHex[c & 15];
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string written(const Value& value) {
  if (const auto* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  if (const auto* i = std::get_if<std::int64_t>(&value)) return std::to_string(*i);
  if (const auto* d = std::get_if<double>(&value)) {
    std::ostringstream out;
    out << *d;
    return out.str();
  }
  return in_quotes(std::get<std::string>(value));
}

// --- readers of one kind of value each ---------------------------------------------------------

Read read_text(const Value& value, std::string* out) {
  const auto* const text = std::get_if<std::string>(&value);
  if (text == nullptr) return Fault{written(value) + " is not text", "put it in quotes"};
  if (text->find('\0') != std::string::npos) return Fault{"holds a zero byte", "remove it"};
  *out = *text;
  return {};
}

Read read_path(const Value& value, std::string* out) {
  if (Read fault = read_text(value, out)) return fault;
  if (!out->empty() && out->front() != '/') {
    return Fault{in_quotes(*out) + " is a relative path", "write the path from /"};
  }
  return {};
}

Read read_bool(const Value& value, bool* out) {
  const auto* const b = std::get_if<bool>(&value);
  if (b == nullptr)
    return Fault{written(value) + " is neither true nor false", "write true or false"};
  *out = *b;
  return {};
}

Read read_count(const Value& value, std::uint32_t least, std::uint32_t most, std::uint32_t* out) {
  const auto* const i = std::get_if<std::int64_t>(&value);
  const std::string range = std::to_string(least) + " to " + std::to_string(most);
  if (i == nullptr) {
    return Fault{written(value) + " is not a whole number", "write a number from " + range};
  }
  if (*i < least || *i > most) {
    return Fault{std::to_string(*i) + " is out of range", "write a number from " + range};
  }
  *out = static_cast<std::uint32_t>(*i);
  return {};
}

// Bytes; a percentage is of `whole_bytes`.
Read read_size(const Value& value, std::uint64_t whole_bytes, std::uint64_t* out) {
  if (const auto* const i = std::get_if<std::int64_t>(&value)) {
    if (*i < 0) return Fault{std::to_string(*i) + " is negative", "write a size such as \"12GiB\""};
    *out = static_cast<std::uint64_t>(*i);
    return {};
  }
  const auto* const text = std::get_if<std::string>(&value);
  if (text == nullptr) {
    return Fault{written(value) + " is not a size", "write \"12GiB\", \"60%\" or bytes"};
  }
  Result<std::uint64_t> size = parse_size(*text, whole_bytes);
  if (!size.ok()) return Fault{in_quotes(*text), size.status().what()};
  *out = *size;
  return {};
}

Read read_duration(const Value& value, std::uint64_t least_ns, std::uint64_t most_ns,
                   std::uint64_t* out) {
  const auto* const text = std::get_if<std::string>(&value);
  if (text == nullptr) {
    return Fault{written(value) + " is not a duration", "write it with its unit, such as \"50ms\""};
  }
  Result<std::uint64_t> duration = parse_duration(*text);
  if (!duration.ok()) return Fault{in_quotes(*text), duration.status().what()};
  if (*duration < least_ns || *duration > most_ns) {
    return Fault{in_quotes(*text) + " is out of range",
                 "write " + show_duration(least_ns) + " to " + show_duration(most_ns)};
  }
  *out = *duration;
  return {};
}

template <class T, std::size_t N>
using Choices = std::array<std::pair<const char*, T>, N>;

template <class T, std::size_t N>
Read read_choice(const Value& value, const Choices<T, N>& choices, T* out) {
  const auto* const text = std::get_if<std::string>(&value);
  std::string remedy = "write one of";
  for (const auto& [name, choice] : choices) {
    if (text != nullptr && *text == name) {
      *out = choice;
      return {};
    }
    remedy += std::string(" ") + in_quotes(name);
  }
  return Fault{written(value) + " is not a choice here", remedy};
}

template <class T, std::size_t N>
std::string show_choice(const Choices<T, N>& choices, T value) {
  for (const auto& [name, choice] : choices) {
    if (choice == value) return in_quotes(name);
  }
  return "";
}

// --- readers of one key each -------------------------------------------------------------------

constexpr Choices<HugePages, 3> kHugePages{
    {{"auto", HugePages::kAuto}, {"require", HugePages::kRequire}, {"off", HugePages::kOff}}};
constexpr Choices<LogLevel, 4> kLogLevels{{{"error", LogLevel::kError},
                                           {"warning", LogLevel::kWarning},
                                           {"info", LogLevel::kInfo},
                                           {"debug", LogLevel::kDebug}}};

Read read_socket(const Value& value, const Machine&, Config& c) {
  if (Read fault = read_path(value, &c.daemon.socket)) return fault;
  if (c.daemon.socket.empty())
    return Fault{"is empty", "write a path such as " + in_quotes(kDefaultSocket)};
  const std::size_t most = sizeof(sockaddr_un::sun_path) - 1;
  if (c.daemon.socket.size() > most) {
    return Fault{"is " + std::to_string(c.daemon.socket.size()) + " bytes long",
                 "a socket's path has at most " + std::to_string(most) + " bytes"};
  }
  return {};
}

Read read_mode(const Value& value, const Machine&, Config& c) {
  std::int64_t mode = -1;
  if (const auto* const i = std::get_if<std::int64_t>(&value)) {
    mode = *i;
  } else if (const auto* const text = std::get_if<std::string>(&value)) {
    const char* const end = text->data() + text->size();
    const auto result = std::from_chars(text->data(), end, mode, 8);
    if (result.ec != std::errc{} || result.ptr != end) mode = -1;
  }
  if (mode < 0 || mode > 0777) {
    return Fault{written(value) + " is not a file mode", "write it in octal, such as \"0660\""};
  }
  if ((mode & 0600) != 0600) {
    return Fault{written(value) + " locks the owner out", "it must include \"0600\""};
  }
  c.daemon.mode = static_cast<std::uint32_t>(mode);
  return {};
}

std::string show_mode(const Config& c) {
  std::array<char, 12> digits{};
  const auto end =
      std::to_chars(digits.data(), digits.data() + digits.size(), c.daemon.mode, 8).ptr;
  return in_quotes("0" + std::string(digits.data(), end));
}

Read read_runtime_dir(const Value& value, const Machine&, Config& c) {
  if (Read fault = read_path(value, &c.daemon.runtime_dir)) return fault;
  if (c.daemon.runtime_dir.empty()) {
    c.daemon.runtime_dir = std::filesystem::path(c.daemon.socket).parent_path().string();
  }
  return {};
}

Read read_budget(const Value& value, const Machine& machine, Config& c) {
  std::uint64_t size_bytes = 0;
  if (Read fault = read_size(value, machine.memory_bytes, &size_bytes)) return fault;
  if (size_bytes < kDramBudgetMinBytes) {
    return Fault{written(value) + " is " + show_size(size_bytes),
                 "the budget is at least " + show_size(kDramBudgetMinBytes)};
  }
  if (machine.memory_bytes != 0 && size_bytes > machine.memory_bytes) {
    return Fault{written(value) + " is more than the " +
                     show_size(align_down(machine.memory_bytes, std::uint64_t{1} << 20)) +
                     " of memory that this process may have",
                 "write less, or a share such as \"60%\""};
  }
  c.dram.budget_bytes = align_down(size_bytes, kPageBytes);
  return {};
}

Read read_cxl_nodes(const Value& value, const Machine& machine, Config& c) {
  std::string text;
  if (Read fault = read_text(value, &text)) return fault;
  c.cxl.nodes = {};
  if (text == "auto") {
    for (const os::NumaNode& node : machine.nodes) {
      if (!node.has_cpus) c.cxl.nodes.add(node.number);
    }
    return {};
  }
  Result<os::NodeSet> nodes = os::NodeSet::parse(text);
  if (!nodes.ok() || nodes->empty())
    return Fault{in_quotes(text) + " is no list of memory nodes",
                 "write \"auto\", or numbers such as \"1\" or \"1-2,4\""};
  os::NodeSet here;
  for (const os::NumaNode& node : machine.nodes) here.add(node.number);
  const os::NodeSet absent = nodes->without(here);
  if (!absent.empty())
    return Fault{"node " + absent.text() + " has no memory, or is not there",
                 "of this machine's nodes " + here.text() + " have some"};
  if (here.without(*nodes).empty())
    return Fault{in_quotes(text) + " is all the memory there is", "leave a node for DRAM"};
  c.cxl.nodes = *nodes;
  return {};
}

Read read_cxl_budget(const Value& value, const Machine& machine, Config& c) {
  std::uint64_t whole_bytes = 0;
  for (const os::NumaNode& node : machine.nodes) {
    if (c.cxl.nodes.has(node.number)) whole_bytes += node.total_bytes;
  }
  std::uint64_t size_bytes = 0;
  if (Read fault = read_size(value, whole_bytes, &size_bytes)) return fault;
  if (size_bytes > 0 && c.cxl.nodes.empty()) {
    return Fault{"this machine has no memory node without CPUs",
                 "write 0; or, if the kernel has the device as devdax, make it memory: daxctl "
                 "reconfigure-device --mode=system-ram; or name nodes in cxl.nodes"};
  }
  if (size_bytes > whole_bytes) {
    return Fault{written(value) + " is more than the " +
                     show_size(align_down(whole_bytes, std::uint64_t{1} << 20)) + " of node " +
                     c.cxl.nodes.text(),
                 "write less, or a share such as \"90%\""};
  }
  c.cxl.budget_bytes = align_down(size_bytes, kPageBytes);
  return {};
}

constexpr std::uint64_t kMigrateLimitMinBytes = 4 * kPageBytes;

Read read_migrate_limit(const Value& value, const Machine&, Config& c) {
  if (Read fault = read_size(value, 0, &c.cxl.migrate_limit_bytes)) return fault;
  if (c.cxl.migrate_limit_bytes >= kMigrateLimitMinBytes) return {};
  return Fault{written(value) + " is too little to exchange two pages in a second",
               "write at least " + show_size(kMigrateLimitMinBytes)};
}

Read read_store_size(const Value& value, const Machine&, Config& c) {
  std::uint64_t size_bytes = 0;
  if (Read fault = read_size(value, 0, &size_bytes)) return fault;
  if (size_bytes < kStoreMinBytes) {
    return Fault{written(value) + " is " + show_size(size_bytes),
                 "the store is at least " + show_size(kStoreMinBytes) +
                     "; to have none, leave nvme.path out"};
  }
  c.nvme.size_bytes = align_down(size_bytes, kPageBytes);
  return {};
}

// A user who may hold not one page could do nothing.
Read read_quota(const Value& value, std::uint64_t whole_bytes, std::uint64_t* out) {
  if (Read fault = read_size(value, whole_bytes, out)) return fault;
  if (*out < kPageBytes) {
    return Fault{written(value) + " is less than a page",
                 "write at least " + show_size(kPageBytes)};
  }
  *out = align_down(*out, kPageBytes);
  return {};
}

// Of what belongs to another key, at most so many percent of it; 0 is none.
Read read_share(const Value& value, std::uint64_t whole_bytes, unsigned most_percent,
                const char* whole, std::uint64_t* out) {
  if (Read fault = read_size(value, whole_bytes, out)) return fault;
  if (*out > whole_bytes - whole_bytes / 100 * (100 - most_percent)) {
    return Fault{written(value) + " is more than " + std::to_string(most_percent) + " % of " +
                     whole + ", " + show_size(whole_bytes),
                 "write less, or a share such as \"25%\""};
  }
  *out = align_down(*out, kPageBytes);
  return {};
}

Read read_cache_policy(const Value& value, const Machine&, Config& c) {
  if (Read fault = read_text(value, &c.cache.policy)) return fault;
  if (policy::make_block_policy(c.cache.policy, 0) == nullptr) {
    return Fault{written(value) + " is no policy",
                 "write one of " + std::string(policy::block_policy_names())};
  }
  return {};
}

// "none": 0.
Read read_write_budget(const Value& value, const Machine&, Config& c) {
  constexpr std::string_view kPerDay = "/day";
  const char* const remedy = "write bytes a day such as \"2TiB/day\", or \"none\"";
  const auto* const text = std::get_if<std::string>(&value);
  if (text == nullptr) return Fault{written(value) + " is not a size per day", remedy};
  std::uint64_t bytes = 0;
  if (*text != "none") {
    if (!text->ends_with(kPerDay)) return Fault{in_quotes(*text) + " is not per day", remedy};
    Result<std::uint64_t> size =
        parse_size(std::string_view(*text).substr(0, text->size() - kPerDay.size()));
    if (!size.ok()) {
      return Fault{in_quotes(*text) + ": " + size.status().what(), remedy};
    }
    bytes = *size;
    if (bytes < kWriteBudgetMinBytes) {
      return Fault{in_quotes(*text) + " is less than an hour's worth of one block",
                   "write at least \"" + show_size(kWriteBudgetMinBytes) +
                       "/day\"; to store no blocks, cache.store = 0"};
    }
  }
  c.cache.write_bytes_per_day = bytes;
  return {};
}

std::string show_write_budget(const Config& c) {
  const std::uint64_t bytes = c.cache.write_bytes_per_day;
  return in_quotes(bytes == 0 ? "none" : show_size(bytes) + "/day");
}

// "auto": `out` is left empty.
template <class T, class ReadOne>
Read read_or_auto(const Value& value, std::optional<T>* out, ReadOne read) {
  out->reset();
  const auto* const text = std::get_if<std::string>(&value);
  if (text != nullptr && *text == "auto") return {};
  T one = 0;
  if (Read fault = read(&one)) {
    fault->remedy += ", or \"auto\"";
    return fault;
  }
  *out = one;
  return {};
}

constexpr std::uint64_t kMs = 1'000'000;

constexpr Field kFields[] = {
    {"daemon.socket", "\"/run/kvmem/kvmemd.sock\"", false, "where engines and kvmemctl connect",
     read_socket, [](const Config& c) { return in_quotes(c.daemon.socket); }},
    {"daemon.mode", "\"0660\"", false, "permissions of the socket", read_mode, show_mode},
    {"daemon.group", "\"\"", false, "group of the socket; \"\": the daemon's own",
     [](const Value& v, const Machine&, Config& c) { return read_text(v, &c.daemon.group); },
     [](const Config& c) { return in_quotes(c.daemon.group); }},
    {"daemon.runtime_dir", "\"\"", false, "locks and leases; \"\": the socket's folder",
     read_runtime_dir, [](const Config& c) { return in_quotes(c.daemon.runtime_dir); }},

    {"dram.budget", "\"50%\"", true,
     "page frames in DRAM for all engines together: a size, or % of the memory the daemon may have",
     read_budget, [](const Config& c) { return in_quotes(show_size(c.dram.budget_bytes)); }},
    {"dram.huge_pages", "\"auto\"", false,
     "\"auto\": hugetlb pages where the pool has them; \"require\": nothing else; \"off\": never",
     [](const Value& v, const Machine&, Config& c) {
       return read_choice(v, kHugePages, &c.dram.huge_pages);
     },
     [](const Config& c) { return show_choice(kHugePages, c.dram.huge_pages); }},

    {"cxl.nodes", "\"auto\"", false,
     "memory nodes of the CXL tier, such as \"1-2\"; \"auto\": those without CPUs", read_cxl_nodes,
     [](const Config& c) { return in_quotes(c.cxl.nodes.empty() ? "auto" : c.cxl.nodes.text()); }},
    {"cxl.budget", "\"0\"", true,
     "page frames in CXL memory, beside dram.budget: a size, or % of what those nodes have; 0: "
     "none",
     read_cxl_budget, [](const Config& c) { return in_quotes(show_size(c.cxl.budget_bytes)); }},
    {"cxl.migrate_limit", "\"1GiB\"", true,
     "at most so much a second moves between DRAM and CXL memory, both ways together",
     read_migrate_limit,
     [](const Config& c) { return in_quotes(show_size(c.cxl.migrate_limit_bytes)); }},

    {"nvme.path", "\"\"", false,
     "file or block device of the page store; \"\": none, only pages of files leave DRAM",
     [](const Value& v, const Machine&, Config& c) { return read_path(v, &c.nvme.path); },
     [](const Config& c) { return in_quotes(c.nvme.path); }},
    {"nvme.size", "\"32GiB\"", false, "size of the store", read_store_size,
     [](const Config& c) { return in_quotes(show_size(c.nvme.size_bytes)); }},
    {"nvme.sync_interval", "\"50ms\"", false, "at most this long between syncs of the store",
     [](const Value& v, const Machine&, Config& c) {
       return read_duration(v, kMs, 60'000 * kMs, &c.nvme.sync_interval_ns);
     },
     [](const Config& c) { return in_quotes(show_duration(c.nvme.sync_interval_ns)); }},

    {"gpu.budget", "\"auto\"", true,
     "of each GPU's own memory, what all engines together may hold: a size; \"auto\": 95 %",
     [](const Value& v, const Machine&, Config& c) {
       return read_or_auto(v, &c.gpu.budget_bytes,
                           [&](std::uint64_t* bytes) { return read_size(v, 0, bytes); });
     },
     [](const Config& c) {
       return in_quotes(c.gpu.budget_bytes ? show_size(*c.gpu.budget_bytes) : "auto");
     }},
    {"gpu.driver", "\"\"", false,
     "the libcuda.so.1 whose users are watched; empty: where it usually lies",
     [](const Value& v, const Machine&, Config& c) { return read_path(v, &c.gpu.driver); },
     [](const Config& c) { return in_quotes(c.gpu.driver); }},

    {"ebpf.enable", "true", false,
     "ask the kernel by BPF who uses the disk and the GPUs, and what stalls engines; needs root, "
     "or CAP_BPF and CAP_PERFMON",
     [](const Value& v, const Machine&, Config& c) { return read_bool(v, &c.ebpf.enable); },
     [](const Config& c) { return std::string(c.ebpf.enable ? "true" : "false"); }},

    {"cache.dram", "\"25%\"", false,
     "of dram.budget, for blocks of KV cache once an engine asks for some: a size, or % (at most "
     "75)",
     [](const Value& v, const Machine&, Config& c) {
       return read_share(v, c.dram.budget_bytes, 75, "dram.budget", &c.cache.dram_bytes);
     },
     [](const Config& c) { return in_quotes(show_size(c.cache.dram_bytes)); }},
    {"cache.store", "\"50%\"", false, "of nvme.size, what blocks may fill: a size, or %",
     [](const Value& v, const Machine&, Config& c) {
       return read_share(v, c.nvme.size_bytes, 100, "nvme.size", &c.cache.store_bytes);
     },
     [](const Config& c) { return in_quotes(show_size(c.cache.store_bytes)); }},
    {"cache.policy", "\"kvmem\"", false, "which blocks stay: \"kvmem\", or one to compare it with",
     read_cache_policy, [](const Config& c) { return in_quotes(c.cache.policy); }},
    {"cache.write_through", "true", false,
     "blocks are written to the store when they are put; false: when DRAM has no room for them",
     [](const Value& v, const Machine&, Config& c) { return read_bool(v, &c.cache.write_through); },
     [](const Config& c) { return std::string(c.cache.write_through ? "true" : "false"); }},
    {"cache.write_budget", "\"none\"", true,
     "what blocks may write to the store: \"2TiB/day\" or the like, spent on those most likely to "
     "be "
     "asked for again; \"none\": no limit",
     read_write_budget, show_write_budget},

    {"quota.per_uid_dram", "\"100%\"", true,
     "one user's allocations are no larger than this and per_uid_store together: a size, or % of "
     "the budget",
     [](const Value& v, const Machine&, Config& c) {
       return read_quota(v, c.dram.budget_bytes, &c.quota.per_uid_dram_bytes);
     },
     [](const Config& c) { return in_quotes(show_size(c.quota.per_uid_dram_bytes)); }},
    {"quota.per_uid_store", "\"100%\"", true,
     "what is added to per_uid_dram: a size, or % of the store",
     [](const Value& v, const Machine&, Config& c) {
       return read_quota(v, c.nvme.size_bytes, &c.quota.per_uid_store_bytes);
     },
     [](const Config& c) { return in_quotes(show_size(c.quota.per_uid_store_bytes)); }},
    {"quota.sessions_max", "256", true,
     "engines of one user connected at once, forked workers with regions included",
     [](const Value& v, const Machine&, Config& c) {
       return read_count(v, 1, 4096, &c.quota.sessions_max);
     },
     [](const Config& c) { return std::to_string(c.quota.sessions_max); }},
    {"quota.regions_max", "1024", true, "regions of one user",
     [](const Value& v, const Machine&, Config& c) {
       return read_count(v, 1, 65536, &c.quota.regions_max);
     },
     [](const Config& c) { return std::to_string(c.quota.regions_max); }},

    {"policy.prefetch_depth", "\"auto\"", false,
     "pages fetched ahead of use; 0: none; \"auto\": as deep as the disk needs",
     [](const Value& v, const Machine&, Config& c) {
       return read_or_auto(v, &c.policy.prefetch_depth,
                           [&](std::uint32_t* depth) { return read_count(v, 0, 1024, depth); });
     },
     [](const Config& c) {
       return c.policy.prefetch_depth ? std::to_string(*c.policy.prefetch_depth)
                                      : in_quotes("auto");
     }},
    {"policy.sampling", "true", true, "sample accesses to resident pages by minor faults",
     [](const Value& v, const Machine&, Config& c) { return read_bool(v, &c.policy.sampling); },
     [](const Config& c) { return std::string(c.policy.sampling ? "true" : "false"); }},

    {"log.level", "\"info\"", true, "\"error\", \"warning\", \"info\" or \"debug\"",
     [](const Value& v, const Machine&, Config& c) {
       return read_choice(v, kLogLevels, &c.log.level);
     },
     [](const Config& c) { return show_choice(kLogLevels, c.log.level); }},
};

// --- keys nobody knows -------------------------------------------------------------------------

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row[b.size()];
}

std::string_view section_of(std::string_view key) { return key.substr(0, key.find('.')); }
std::string_view name_of(std::string_view key) {
  const std::size_t dot = key.find('.');
  return dot == std::string_view::npos ? key : key.substr(dot + 1);
}

// The known key most like `key`: by its whole spelling, or by its name in another section.
std::string closest_key(std::string_view key) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, key.size() / 4) + 1;
  for (const Field& field : kFields) {
    std::size_t distance = edit_distance(key, field.key);
    // A right name in a wrong section, or in none.
    if (name_of(key) == name_of(field.key)) distance = std::min<std::size_t>(distance, 1);
    if (distance < best_distance) {
      best = field.key;
      best_distance = distance;
    }
  }
  return best;
}

std::string closest_section(std::string_view section) {
  std::string best;
  std::size_t best_distance = 3;
  for (const Field& field : kFields) {
    const std::size_t distance = edit_distance(section, section_of(field.key));
    if (distance < best_distance) {
      best = section_of(field.key);
      best_distance = distance;
    }
  }
  return best;
}

bool known_section(std::string_view section) {
  return std::any_of(std::begin(kFields), std::end(kFields),
                     [&](const Field& f) { return section_of(f.key) == section; });
}
bool known_key(std::string_view key) {
  return std::any_of(std::begin(kFields), std::end(kFields),
                     [&](const Field& f) { return key == f.key; });
}

// --- one reading -------------------------------------------------------------------------------

class Reading {
 public:
  Reading(std::string name, const Machine& machine) : name_(std::move(name)), machine_(machine) {}

  void add(std::uint32_t line, std::string where, std::string_view key, std::string what,
           std::string remedy) {
    loaded_.problems.push_back(
        {line, std::move(where), std::string(key), std::move(what), std::move(remedy)});
  }
  void add_at(const toml::source_region& source, std::string_view key, std::string what,
              std::string remedy) {
    add(source.begin.line, name_ + ":" + std::to_string(source.begin.line), key, std::move(what),
        std::move(remedy));
  }
  void add_file(std::string what, std::string remedy) {
    add(0, name_, "", std::move(what), std::move(remedy));
  }

  void read_all(const toml::table& file, const Overrides& overrides) {
    for (const Field& field : kFields) read_one(field, file, overrides);
    refuse_unknown(file);
    std::stable_sort(loaded_.problems.begin(), loaded_.problems.end(),
                     [](const Problem& a, const Problem& b) { return a.line < b.line; });
  }
  Loaded take() { return std::move(loaded_); }

 private:
  struct Override {
    const char* option;
    const std::optional<std::string>* value;
  };
  static Override override_of(std::string_view key, const Overrides& o) {
    if (key == "daemon.socket") return {"--socket", &o.socket};
    if (key == "daemon.runtime_dir") return {"--runtime-dir", &o.runtime_dir};
    if (key == "dram.budget") return {"--dram", &o.dram};
    if (key == "cxl.budget") return {"--cxl", &o.cxl};
    if (key == "nvme.path") return {"--store", &o.store};
    if (key == "nvme.size") return {"--store-size", &o.store_size};
    return {nullptr, nullptr};
  }

  void read_one(const Field& field, const toml::table& file, const Overrides& overrides) {
    const Override override = override_of(field.key, overrides);
    if (override.value != nullptr && *override.value) {
      if (Read fault = field.read(Value(**override.value), machine_, loaded_.config)) {
        add(0, override.option, field.key, fault->what, fault->remedy);
        static_cast<void>(read_default(field));
      }
      return;
    }
    const toml::node* const node = file.at_path(field.key).node();
    if (node == nullptr) {
      if (Read fault = read_default(field)) {
        add(0, "default", field.key, fault->what, fault->remedy);
      }
      return;
    }
    const std::optional<Value> value = value_of(*node);
    Read fault = value ? field.read(*value, machine_, loaded_.config)
                       : Fault{"is neither text, a number, nor true or false", "write one value"};
    if (fault) {
      add_at(node->source(), field.key, fault->what, fault->remedy);
      // One fault, one problem: what refers to this key is checked against its default.
      static_cast<void>(read_default(field));
    }
  }

  Read read_default(const Field& field) {
    const toml::parse_result literal = toml::parse(std::string("v = ") + field.default_toml);
    return field.read(*value_of(*literal.table().get("v")), machine_, loaded_.config);
  }

  static std::optional<Value> value_of(const toml::node& node) {
    if (const auto* const b = node.as_boolean()) return Value(b->get());
    if (const auto* const i = node.as_integer()) return Value(i->get());
    if (const auto* const d = node.as_floating_point()) return Value(d->get());
    if (const auto* const s = node.as_string()) return Value(s->get());
    return std::nullopt;
  }

  void refuse_unknown(const toml::table& file) {
    for (const auto& [section, content] : file) {
      const toml::table* const table = content.as_table();
      if (table == nullptr || !known_section(section.str())) {
        refuse(section, section.str(), table != nullptr);
        continue;
      }
      for (const auto& [name, node] : *table) {
        const std::string key = std::string(section.str()) + "." + std::string(name.str());
        if (!known_key(key)) refuse(name, key, false);
      }
    }
  }

  void refuse(const toml::key& at, std::string_view key, bool is_section) {
    const std::string near = is_section ? closest_section(key) : closest_key(key);
    std::string remedy = "see kvmemctl config keys";
    if (!near.empty()) remedy = "did you mean " + (is_section ? "[" + near + "]" : near) + "?";
    add_at(at.source(), key, is_section ? "no such section" : "no such key", std::move(remedy));
  }

  std::string name_;
  Machine machine_;
  Loaded loaded_;
};

Overrides with_whole_paths(Overrides overrides) {
  for (auto* path : {&overrides.socket, &overrides.runtime_dir, &overrides.store}) {
    if (!*path || (*path)->empty()) continue;
    std::error_code error;
    const auto whole = std::filesystem::absolute(**path, error);
    if (!error) *path = whole.string();
  }
  return overrides;
}

}  // namespace

std::string Problem::text() const {
  std::string out = where;
  for (const std::string* part : {&key, &what}) {
    if (!part->empty()) out += (out.empty() ? "" : ": ") + *part;
  }
  if (!remedy.empty()) out += "; " + remedy;
  return out;
}

Loaded parse(std::string_view text, const std::string& name, const Machine& machine,
             const Overrides& overrides) {
  Reading reading(name, machine);
  const toml::parse_result file = toml::parse(text, name);
  if (!file) {
    const toml::parse_error& error = file.error();
    reading.add_at(error.source(), "", "not TOML: " + std::string(error.description()),
                   "write lines like budget = \"12GiB\" below a [section]");
    return reading.take();
  }
  reading.read_all(file.table(), with_whole_paths(overrides));
  return reading.take();
}

Loaded load(const std::string& path, const Machine& machine, const Overrides& overrides) {
  if (path.empty()) return parse("", "default", machine, overrides);
  Reading reading(path, machine);
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    reading.add_file("is a folder", "name the file in it");
    return reading.take();
  }
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in.is_open() || in.bad()) {
    const int cause = errno;
    reading.add_file("cannot be read: " + std::system_category().message(cause),
                     cause == ENOENT ? "give the path of a file, or none for the defaults"
                                     : "make it readable for this user");
    return reading.take();
  }
  return parse(text.str(), path, machine, overrides);
}

std::vector<Change> diff(const Config& running, const Config& wanted) {
  std::vector<Change> changes;
  for (const Field& field : kFields) {
    std::string from = field.show(running);
    std::string to = field.show(wanted);
    if (from != to) changes.push_back({field.key, std::move(from), std::move(to), field.live});
  }
  return changes;
}

Config with_live_changes(const Config& running, const Config& wanted) {
  Config out = running;
  out.dram.budget_bytes = wanted.dram.budget_bytes;
  out.cxl.budget_bytes = wanted.cxl.budget_bytes;
  out.cxl.migrate_limit_bytes = wanted.cxl.migrate_limit_bytes;
  out.gpu.budget_bytes = wanted.gpu.budget_bytes;
  out.cache.write_bytes_per_day = wanted.cache.write_bytes_per_day;
  out.quota = wanted.quota;
  out.policy.sampling = wanted.policy.sampling;
  out.log = wanted.log;
  return out;
}

std::vector<KeyHelp> keys() {
  std::vector<KeyHelp> out;
  for (const Field& f : kFields) out.push_back({f.key, f.default_toml, f.live, f.help});
  return out;
}

std::string show(const Config& config) {
  std::string out;
  std::string_view section;
  for (const Field& field : kFields) {
    if (section_of(field.key) != section) {
      section = section_of(field.key);
      out += (out.empty() ? "[" : "\n[") + std::string(section) + "]\n";
    }
    out += std::string(name_of(field.key)) + " = " + field.show(config) + "\n";
  }
  return out;
}

}  // namespace kvmem::config

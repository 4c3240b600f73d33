#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace kvmem::config {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
// Two CXL expanders, of 8 and 4 GiB, beside the memory of its own.
const Machine kMachine = [] {
  Machine machine;
  machine.memory_bytes = 16 * kGiB;
  machine.nodes.resize(3);
  machine.nodes[0].has_cpus = true;
  machine.nodes[0].total_bytes = 16 * kGiB;
  machine.nodes[1].number = 2;
  machine.nodes[1].total_bytes = 8 * kGiB;
  machine.nodes[2].number = 3;
  machine.nodes[2].total_bytes = 4 * kGiB;
  return machine;
}();

std::vector<std::string> problems_of(std::string_view text, const Overrides& overrides = {}) {
  std::vector<std::string> out;
  for (const Problem& p : parse(text, "k.toml", kMachine, overrides).problems) {
    out.push_back(p.text());
  }
  return out;
}

Config config_of(std::string_view text, const Overrides& overrides = {}) {
  Loaded loaded = parse(text, "k.toml", kMachine, overrides);
  for (const Problem& p : loaded.problems) ADD_FAILURE() << p.text();
  return loaded.config;
}

std::string changed_keys(const std::vector<Change>& changes, bool live) {
  std::string out;
  for (const Change& c : changes) {
    if (c.live == live) out += std::string(out.empty() ? "" : " ") + c.key;
  }
  return out;
}

// A value that differs from the default, for every key.
constexpr const char* kOther = R"(
[daemon]
socket = "/tmp/other.sock"
mode = 0o666
group = "kvmem"
runtime_dir = "/tmp/run"
[dram]
budget = "4GiB"
huge_pages = "off"
[cxl]
nodes = "3"
budget = "1GiB"
migrate_limit = "64MiB"
[nvme]
path = "/var/lib/kvmem/store"
size = "100GiB"
sync_interval = "10ms"
[gpu]
budget = "20GiB"
driver = "/opt/cuda/libcuda.so.1"
[ebpf]
enable = false
[cache]
dram = "3GiB"
store = "30%"
policy = "arc"
write_through = false
write_budget = "2TiB/day"
[quota]
per_uid_dram = "50%"
per_uid_store = "1GiB"
sessions_max = 3
regions_max = 7
[policy]
prefetch_depth = 12
sampling = false
[log]
level = "debug"
)";

TEST(Config, EmptyFileMeansDefaults) {
  const Config c = config_of("");
  EXPECT_EQ(c.daemon.socket, kDefaultSocket);
  EXPECT_EQ(c.daemon.mode, 0660u);
  EXPECT_EQ(c.daemon.runtime_dir, "/run/kvmem");
  EXPECT_EQ(c.dram.budget_bytes, 8 * kGiB);
  EXPECT_EQ(c.dram.huge_pages, HugePages::kAuto);
  EXPECT_EQ(c.nvme.path, "");
  EXPECT_EQ(c.nvme.sync_interval_ns, 50'000'000u);
  EXPECT_FALSE(c.gpu.budget_bytes.has_value());
  EXPECT_EQ(c.gpu.driver, "");
  EXPECT_TRUE(c.ebpf.enable);
  EXPECT_EQ(c.cache.dram_bytes, 2 * kGiB);
  EXPECT_EQ(c.cache.store_bytes, 16 * kGiB);
  EXPECT_EQ(c.cache.policy, "kvmem");
  EXPECT_TRUE(c.cache.write_through);
  EXPECT_EQ(c.cache.write_bytes_per_day, 0u);
  EXPECT_EQ(c.quota.per_uid_dram_bytes, c.dram.budget_bytes);
  EXPECT_EQ(c.quota.per_uid_store_bytes, c.nvme.size_bytes);
  EXPECT_FALSE(c.policy.prefetch_depth.has_value());
  EXPECT_TRUE(c.policy.sampling);
  EXPECT_EQ(c.log.level, LogLevel::kInfo);
}

TEST(Config, EveryKeyIsRead) {
  const Config c = config_of(kOther);
  EXPECT_EQ(c.daemon.socket, "/tmp/other.sock");
  EXPECT_EQ(c.daemon.mode, 0666u);
  EXPECT_EQ(c.daemon.group, "kvmem");
  EXPECT_EQ(c.daemon.runtime_dir, "/tmp/run");
  EXPECT_EQ(c.dram.budget_bytes, 4 * kGiB);
  EXPECT_EQ(c.dram.huge_pages, HugePages::kOff);
  EXPECT_EQ(c.nvme.path, "/var/lib/kvmem/store");
  EXPECT_EQ(c.nvme.size_bytes, 100 * kGiB);
  EXPECT_EQ(c.nvme.sync_interval_ns, 10'000'000u);
  EXPECT_EQ(c.gpu.budget_bytes, 20 * kGiB);
  EXPECT_EQ(c.cache.dram_bytes, 3 * kGiB);
  EXPECT_EQ(c.cache.store_bytes, 30 * kGiB);
  EXPECT_EQ(c.cache.policy, "arc");
  EXPECT_FALSE(c.cache.write_through);
  EXPECT_EQ(c.cache.write_bytes_per_day, 2048 * kGiB);
  EXPECT_EQ(c.quota.per_uid_dram_bytes, 2 * kGiB);
  EXPECT_EQ(c.quota.per_uid_store_bytes, kGiB);
  EXPECT_EQ(c.quota.sessions_max, 3u);
  EXPECT_EQ(c.quota.regions_max, 7u);
  EXPECT_EQ(c.policy.prefetch_depth, 12u);
  EXPECT_FALSE(c.policy.sampling);
  EXPECT_EQ(c.log.level, LogLevel::kDebug);
}

TEST(Config, ShownConfigReadsBackAsItself) {
  for (const char* text : {"", kOther}) {
    const Config c = config_of(text);
    EXPECT_THAT(diff(c, config_of(show(c))), IsEmpty()) << show(c);
  }
}

TEST(Config, DefaultsInHelpAreTheDefaults) {
  std::string text;
  for (const KeyHelp& k : keys()) text += std::string(k.key) + " = " + k.default_value + "\n";
  EXPECT_THAT(diff(config_of(""), config_of(text)), IsEmpty());
}

TEST(Config, ProblemNamesLineKeyFaultAndRemedy) {
  const Loaded loaded = parse("[dram]\n\nbudget = \"12 apples\"\n", "k.toml", kMachine);
  ASSERT_THAT(loaded.problems, SizeIs(1));
  EXPECT_EQ(loaded.problems[0].line, 3u);
  EXPECT_THAT(loaded.problems[0].text(), AllOf(HasSubstr("k.toml:3: dram.budget: \"12 apples\""),
                                               HasSubstr("use KiB, MiB, GiB")));
}

TEST(Config, AWriteBudgetIsASizePerDayOrNone) {
  const auto bytes = [](const std::string& text) {
    return config_of("[cache]\nwrite_budget = " + text + "\n").cache.write_bytes_per_day;
  };
  EXPECT_EQ(bytes("\"1.5TB/day\""), 1'500'000'000'000u);
  EXPECT_EQ(bytes("\"1536MiB/day\""), kWriteBudgetMinBytes);
  EXPECT_EQ(bytes("\"none\""), 0u);
  for (const char* text : {"\"2TiB\"", "\"2TiB/hour\"", "\"/day\"", "\"10%/day\"", "\"1GiB/day\"",
                           "\"0/day\"", "\"\"", "100", "true"}) {
    const auto problems = problems_of("[cache]\n\nwrite_budget = " + std::string(text) + "\n");
    ASSERT_THAT(problems, SizeIs(1)) << text;
    EXPECT_THAT(problems[0], AllOf(HasSubstr("k.toml:3: cache.write_budget: "),
                                   HasSubstr("; write "), HasSubstr("/day\"")));
  }
}

TEST(Config, AllProblemsComeBackInTheOrderOfTheFile) {
  const auto problems = problems_of(
      "[log]\nlevel = \"loud\"\n[policy]\nsampling = 1\n[dram]\nbudget = \"1KiB\"\nfoo = 1\n");
  ASSERT_THAT(problems, SizeIs(4));
  EXPECT_THAT(problems[0], HasSubstr("k.toml:2: log.level"));
  EXPECT_THAT(problems[1], HasSubstr("k.toml:4: policy.sampling"));
  EXPECT_THAT(problems[2], HasSubstr("k.toml:6: dram.budget"));
  EXPECT_THAT(problems[3], HasSubstr("k.toml:7: dram.foo: no such key"));
}

TEST(Config, UnknownKeyAsksForTheClosest) {
  EXPECT_THAT(problems_of("[dram]\nbudgett = 1\n"),
              ElementsAre(HasSubstr("did you mean dram.budget?")));
  EXPECT_THAT(problems_of("[nvme]\nbudget = \"1GiB\"\n"),
              ElementsAre(HasSubstr("did you mean dram.budget?")));
  EXPECT_THAT(problems_of("sampling = true\n"),
              ElementsAre(HasSubstr("did you mean policy.sampling?")));
  EXPECT_THAT(problems_of("[drm]\nbudget = \"1GiB\"\n"),
              ElementsAre(HasSubstr("did you mean [dram]?")));
  EXPECT_THAT(problems_of("[dram]\nxyzzyxyzzy = 1\n"),
              ElementsAre(AllOf(HasSubstr("no such key"), HasSubstr("config keys"))));
  EXPECT_THAT(problems_of("[dram.budget]\nx = 1\n"),
              ElementsAre(HasSubstr("k.toml:1: dram.budget")));
}

TEST(Config, BudgetHasALeastAndAMost) {
  EXPECT_THAT(problems_of("[dram]\nbudget = \"63MiB\"\n"),
              ElementsAre(HasSubstr("at least 64MiB")));
  EXPECT_THAT(problems_of("[dram]\nbudget = \"17GiB\"\n"),
              ElementsAre(HasSubstr("more than the 16GiB")));
  EXPECT_EQ(config_of("[dram]\nbudget = 67108864\n").dram.budget_bytes, 64 * kMiB);
  EXPECT_EQ(config_of("[dram]\nbudget = \"65MiB\"\n").dram.budget_bytes, 64 * kMiB);  // whole pages
}

TEST(Config, WrongTypesAreRefusedNotConverted) {
  EXPECT_THAT(problems_of("[dram]\nbudget = 1.5\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[dram]\nbudget = true\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[dram]\nbudget = [1]\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[dram]\nbudget = -1\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[daemon]\nsocket = 1\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[quota]\nsessions_max = \"3\"\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[quota]\nsessions_max = 0\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[nvme]\nsync_interval = 50\n"), SizeIs(1));
}

TEST(Config, SocketMustFitItsAddress) {
  EXPECT_THAT(problems_of("[daemon]\nsocket = \"/" + std::string(107, 'a') + "\"\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[daemon]\nsocket = \"/" + std::string(106, 'a') + "\"\n"), IsEmpty());
  EXPECT_THAT(problems_of("[daemon]\nsocket = \"run/kvmem.sock\"\n"),
              ElementsAre(HasSubstr("relative path")));
}

TEST(Config, ModeIsOctal) {
  EXPECT_EQ(config_of("[daemon]\nmode = \"0600\"\n").daemon.mode, 0600u);
  EXPECT_THAT(problems_of("[daemon]\nmode = 660\n"), SizeIs(1));  // 01224
  EXPECT_THAT(problems_of("[daemon]\nmode = \"0x1\"\n"), SizeIs(1));
  EXPECT_THAT(problems_of("[daemon]\nmode = \"0066\"\n"),
              ElementsAre(HasSubstr("locks the owner out")));
}

TEST(Config, TextThatIsNotTomlNamesItsLine) {
  EXPECT_THAT(problems_of("[dram]\nbudget = 12GiB\n"),
              ElementsAre(HasSubstr("k.toml:2: not TOML")));
  EXPECT_THAT(problems_of("[dram]\nbudget = 1\nbudget = 2\n"), ElementsAre(HasSubstr("k.toml:3:")));
}

TEST(Config, CxlMemoryIsWhatHasNoCpus) {
  EXPECT_EQ(config_of("").cxl.nodes.text(), "2-3");
  EXPECT_EQ(config_of("").cxl.budget_bytes, 0u);
  EXPECT_EQ(config_of("[cxl]\nbudget = \"50%\"\n").cxl.budget_bytes, 6 * kGiB);
  const Config named = config_of("[cxl]\nnodes = \"3\"\nbudget = \"50%\"\n");
  EXPECT_EQ(named.cxl.nodes.text(), "3");
  EXPECT_EQ(named.cxl.budget_bytes, 2 * kGiB);
  EXPECT_THAT(problems_of("[cxl]\nbudget = \"13GiB\"\n"),
              ElementsAre(HasSubstr("k.toml:2: cxl.budget: \"13GiB\" is more than the 12GiB of")));
  EXPECT_THAT(problems_of("[cxl]\nnodes = \"1\"\n"),
              ElementsAre(HasSubstr("node 1 has no memory")));
  EXPECT_THAT(problems_of("[cxl]\nnodes = \"0,2-3\"\n"),
              ElementsAre(HasSubstr("leave a node for DRAM")));
  EXPECT_THAT(problems_of("[cxl]\nnodes = \"2-\"\n"), ElementsAre(HasSubstr("no list of memory")));
  EXPECT_THAT(problems_of("[cxl]\nmigrate_limit = \"1MiB\"\n"), ElementsAre(HasSubstr("8MiB")));
}

TEST(Config, WithoutSuchMemoryThereIsNoBudget) {
  Machine machine;
  machine.memory_bytes = 16 * kGiB;
  machine.nodes.resize(1);
  machine.nodes[0].has_cpus = true;
  machine.nodes[0].total_bytes = 16 * kGiB;
  EXPECT_TRUE(parse("", "k.toml", machine).ok());
  const Loaded loaded = parse("[cxl]\nbudget = \"1GiB\"\n", "k.toml", machine);
  ASSERT_THAT(loaded.problems, SizeIs(1));
  EXPECT_THAT(loaded.problems[0].text(), HasSubstr("no memory node without CPUs; write 0"));
}

TEST(Config, CommandLineStandsInForTheFile) {
  Overrides o;
  o.dram = "25%";
  o.cxl = "25%";
  o.socket = "/tmp/s";
  o.store = "/tmp/store";
  o.store_size = "2GiB";
  o.runtime_dir = "/tmp/r";
  const Config c = config_of("[dram]\nbudget = \"nonsense\"\n[quota]\nper_uid_dram = \"50%\"\n", o);
  EXPECT_EQ(c.dram.budget_bytes, 4 * kGiB);
  EXPECT_EQ(c.cxl.budget_bytes, 3 * kGiB);
  EXPECT_EQ(c.quota.per_uid_dram_bytes, 2 * kGiB);  // of the budget given
  EXPECT_EQ(c.daemon.socket, "/tmp/s");
  EXPECT_EQ(c.nvme.path, "/tmp/store");
  EXPECT_EQ(c.nvme.size_bytes, 2 * kGiB);
  EXPECT_EQ(c.daemon.runtime_dir, "/tmp/r");
}

TEST(Config, CommandLineProblemNamesTheOption) {
  Overrides o;
  o.dram = "lots";
  EXPECT_THAT(problems_of("", o), ElementsAre(HasSubstr("--dram: dram.budget: \"lots\"")));
}

TEST(Config, RelativePathsOnTheCommandLineAreTheCallers) {
  Overrides o;
  o.store = "store";
  EXPECT_EQ(config_of("", o).nvme.path, (std::filesystem::current_path() / "store").string());
}

TEST(Config, DiffSaysWhichKeysNeedARestart) {
  const auto changes = diff(config_of(""), config_of(kOther));
  EXPECT_EQ(changes.size(), keys().size());
  EXPECT_EQ(changed_keys(changes, false),
            "daemon.socket daemon.mode daemon.group daemon.runtime_dir dram.huge_pages cxl.nodes "
            "nvme.path nvme.size nvme.sync_interval gpu.driver ebpf.enable cache.dram cache.store "
            "cache.policy cache.write_through "
            "policy.prefetch_depth");
}

TEST(Config, LiveChangesAreExactlyTheLiveKeys) {
  const Config running = config_of("");
  const Config wanted = config_of(kOther);
  const Config now = with_live_changes(running, wanted);
  EXPECT_EQ(changed_keys(diff(running, now), false), "");
  EXPECT_EQ(changed_keys(diff(running, now), true), changed_keys(diff(running, wanted), true));
  EXPECT_EQ(changed_keys(diff(now, wanted), true), "");
}

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/kvmem_config_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, std::string_view text) const {
    const std::filesystem::path whole = root_ + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }
  std::string root_;
};

TEST_F(Files, FileThatIsNotThereIsAProblem) {
  const Loaded loaded = load(root_ + "/none.toml", kMachine);
  ASSERT_THAT(loaded.problems, SizeIs(1));
  EXPECT_THAT(loaded.problems[0].text(), HasSubstr("No such file"));
  EXPECT_THAT(load(root_, kMachine).problems, SizeIs(1));
  EXPECT_TRUE(load("", kMachine).ok());
}

TEST_F(Files, FileIsRead) {
  write("/k.toml", "[dram]\nbudget = \"1GiB\"\n");
  const Loaded loaded = load(root_ + "/k.toml", kMachine);
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded.config.dram.budget_bytes, kGiB);
}

TEST_F(Files, MachineIsItsMemory) {
  write("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\n");
  EXPECT_EQ(Machine::detect(root_).memory_bytes, 16 * kGiB);
}

TEST_F(Files, MachineIsTheSmallestCgroupLimitAbove) {
  write("/proc/meminfo", "MemTotal:       16777216 kB\n");
  write("/proc/self/cgroup", "0::/a.slice/b.scope\n");
  write("/sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n");
  write("/sys/fs/cgroup/a.slice/memory.max", "2147483648\n");
  EXPECT_EQ(Machine::detect(root_).memory_bytes, 2 * kGiB);
}

TEST(Machine, DetectsThisOne) { EXPECT_GE(Machine::detect().memory_bytes, 64 * kMiB); }

}  // namespace
}  // namespace kvmem::config

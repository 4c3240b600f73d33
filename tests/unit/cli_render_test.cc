#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "cli/render.h"

namespace kvmem::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

std::size_t longest_line(const std::string& text) {
  std::size_t longest = 0;
  for (const std::string& line : lines_of(text)) longest = std::max(longest, line.size());
  return longest;
}

std::string map_of(const std::string& state, unsigned width = 80, bool colour = false) {
  return page_map(
      {.first_page = 0, .page_bytes = 2 * kMiB, .state = state, .heat = "", .pinned = ""},
      {.colour = colour, .width = width});
}

TEST(HumanBytes, ThreeDigitsAndTheUnitThatFits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(3 * kGiB / 2), "1.50 GiB");
  EXPECT_EQ(human_bytes(64 * kMiB), "64.0 MiB");
  EXPECT_EQ(human_bytes(600 * kMiB), "600 MiB");
  EXPECT_EQ(human_bytes(kGiB - 1), "1.00 GiB");  // not 1024 MiB
  EXPECT_EQ(human_bytes(UINT64_MAX), "16.0 EiB");
}

TEST(HumanCount, GroupsThousands) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1,000");
  EXPECT_EQ(human_count(1234567), "1,234,567");
}

TEST(HumanSeconds, TwoUnitsAtMost) {
  EXPECT_EQ(human_seconds(0.25), "250 ms");
  EXPECT_EQ(human_seconds(4.5), "4.5 s");
  EXPECT_EQ(human_seconds(125), "2 min 5 s");
  EXPECT_EQ(human_seconds(3 * 3600 + 12 * 60 + 5), "3 h 12 min");
  EXPECT_EQ(human_seconds(2 * 86400 + 3600), "2 d 1 h");
}

TEST(Printable, NoControlCharacterReachesTheTerminal) {
  EXPECT_EQ(printable("llama\033[2Jserver\n"), "llama?[2Jserver?");
  EXPECT_EQ(printable("\x7f\x01"), "??");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            "??31m");  // C1 CSI as UTF-8
  EXPECT_EQ(printable("größe"), "größe");
}

TEST(Table, NumbersAlignRightAndNamesLeft) {
  const std::string out = table({{"name"}, {"size", true}}, {{"a", "1"}, {"bcdef", "1000"}}, {});
  EXPECT_THAT(lines_of(out), ElementsAre("name   size", "a         1", "bcdef  1000"));
}

TEST(Table, ShrinkingColumnGivesWayAndKeepsTheEnd) {
  const std::string path = "/a/very/long/path/that/does/not/fit/model.gguf";
  const std::string out = table({{"path", false, true}, {"size", true}}, {{path, "12 GiB"}},
                                {.colour = false, .width = 30});
  EXPECT_LE(longest_line(out), 30u);
  EXPECT_THAT(out, AllOf(HasSubstr("model.gguf"), HasSubstr(".."), HasSubstr("12 GiB")));
}

TEST(Table, RowsThatLackCellsAreBlankThere) {
  EXPECT_THAT(lines_of(table({{"a"}, {"b"}}, {{"1"}}, {})), ElementsAre("a  b", "1"));
}

TEST(PageMap, OneGlyphAPageWhenTheyFit) {
  EXPECT_THAT(map_of("RRrSO.X"),
              AllOf(HasSubstr("        0 RRrSO.X\n"), HasSubstr("one glyph a page")));
}

TEST(PageMap, LegendNamesOnlyWhatIsThere) {
  const std::string out = map_of("RRSS");
  EXPECT_THAT(out, AllOf(HasSubstr("R  resident"), HasSubstr("S  stored on NVMe"),
                         Not(HasSubstr("lost")), Not(HasSubstr("fresh"))));
}

TEST(PageMap, LinesFitTheWidthAndNameTheirFirstPage) {
  const std::string out = map_of(std::string(200, 'R'), 60);
  EXPECT_LE(longest_line(out), 60u);
  EXPECT_THAT(out,
              AllOf(HasSubstr("        0 R"), HasSubstr("       50 R"), HasSubstr("      150 R")));
}

TEST(PageMap, BucketsOfAPowerOfTwoWhenThereAreTooMany) {
  const std::string out = map_of(std::string(100'000, 'O'), 80);
  EXPECT_THAT(out, HasSubstr("one glyph for 64 pages"));
  EXPECT_THAT(out, HasSubstr("128 MiB"));
  EXPECT_LE(lines_of(out).size(), 30u);
}

TEST(PageMap, BucketShowsItsCommonestStateButALostPageAlways) {
  std::string state(70 * 24 * 4, 'S');  // four pages a bucket at width 80
  state.replace(0, 4, "RRRS");
  state.replace(4, 4, "SSXS");
  EXPECT_THAT(map_of(state), HasSubstr("        0 RXSSS"));
}

TEST(PageMap, UnknownStateIsShownAsUnknown) {
  EXPECT_THAT(map_of("RQ"), AllOf(HasSubstr("0 R?\n"), HasSubstr("?  unknown")));
}

TEST(PageMap, HeatOfABucketIsItsHottestPages) {
  const PageMap map{.first_page = 8, .page_bytes = 0, .state = "RRR", .heat = "090", .pinned = ""};
  EXPECT_THAT(page_map(map, {}), HasSubstr("        8 .9.\n"));
}

TEST(PageMap, PinnedPagesAreNamedAsRuns) {
  const PageMap map{
      .first_page = 10, .page_bytes = 0, .state = "RRRRR", .heat = "", .pinned = "11001"};
  EXPECT_THAT(page_map(map, {}), HasSubstr("pinned: 10-11, 14\n"));
}

TEST(PageMap, ColoursOnlyWhenAskedFor) {
  EXPECT_THAT(map_of("RS"), Not(HasSubstr("\033")));
  const std::string coloured = map_of("RRSS", 80, true);
  EXPECT_THAT(coloured, AllOf(HasSubstr("\033[0;32mRR\033[0;34mSS"), HasSubstr("\033[0m\n")));
}

TEST(PageMap, NoPagesIsNoMap) { EXPECT_EQ(map_of(""), "no pages\n"); }

// What the daemon sends.
json full_status() {
  return json::parse(R"({
    "daemon": {"pid": 4711, "version": "0.1.0", "uptime_s": 62, "rss_bytes": 12582912,
               "socket": "/run/kvmem/kvmemd.sock", "huge_pages": "hugetlb",
               "warnings": ["NUMA balancing is on"]},
    "tiers": [{"name": "dram", "nodes": "0", "capacity_bytes": 1073741824, "used_bytes": 536870912},
              {"name": "nvme", "path": "/var/lib/kvmem/store", "capacity_bytes": 34359738368,
               "used_bytes": 0, "quarantined": 3,
               "disk": {"own_read_bytes_s": 2147483648.0, "other_read_bytes_s": 1048576.0,
                        "own_write_bytes_s": 0.0, "other_write_bytes_s": 0.0,
                        "read_p50_us": 512, "read_p99_us": 4096}},
              {"name": "origin", "files": 2}],
    "engines": [{"session": 1, "pid": 99, "uid": 1000, "tag": "llama-server", "regions": 2,
                 "size_bytes": 2147483648, "resident_bytes": 536870912, "connected": false}],
    "regions": [{"region": 7, "session": 1, "pid": 99, "tag": "llama-server", "kind": "origin",
                 "path": "/models/m.gguf", "size_bytes": 2147483648, "page_bytes": 2097152,
                 "backing": "hugetlb", "views": 2, "resident_pages": 256, "stored_pages": 0,
                 "origin_pages": 768, "fresh_pages": 0, "lost_pages": 0, "pinned_pages": 4}],
    "counters": {"faults_missing": 1234, "origin_read_bytes": 3221225472, "samples": 0},
    "moves_by_reason": {"prefetch_order": 900},
    "latency": {"restore_p50_us": 850.4, "restore_p99_us": 2300},
    "sources": [{"name": "sampling", "tells": "pages in use", "on": true, "why_off": ""},
                {"name": "gpu", "tells": "who holds it", "on": false, "why_off": "no driver"}],
    "gpu_processes": [
      {"pid": 77, "uid": 1000, "name": "python3", "cgroup": "/user.slice", "under_kvmem": false,
       "device_bytes": 3221225472, "device_peak_bytes": 4294967296, "allocations": 12,
       "failures": 2, "untracked": 0, "idle_s": 61.0}],
    "kernel_migrations": {"compaction": {"moved_os_pages": 512, "failed_os_pages": 3}}})");
}

TEST(Status, ShowsDaemonTiersEnginesRegionsAndCounters) {
  const std::string out = render_status(full_status(), {.colour = false, .width = 200});
  EXPECT_THAT(out, StartsWith("kvmemd 0.1.0: pid 4711, up 1 min 2 s, 12.0 MiB of its own"));
  EXPECT_THAT(out, HasSubstr("! NUMA balancing is on"));
  EXPECT_THAT(out, HasSubstr("1.00 GiB  512 MiB  50 %  NUMA node 0"));
  EXPECT_THAT(out, HasSubstr("3 places quarantined"));
  EXPECT_THAT(out, HasSubstr("away"));
  EXPECT_THAT(out, HasSubstr("/models/m.gguf, 2 engines share it"));
  EXPECT_THAT(out, HasSubstr("faults missing 1,234"));
  EXPECT_THAT(out, HasSubstr("origin read 3.00 GiB"));
  EXPECT_THAT(out, Not(HasSubstr("samples 0")));
  EXPECT_THAT(out, HasSubstr("restore p50 850 us p99 2.30 ms"));
  EXPECT_THAT(
      out,
      HasSubstr("disk reads:  2.00 GiB/s for kvmem, 1.00 MiB/s for others; a request takes < 512"));
  EXPECT_THAT(out, HasSubstr("off: gpu (`kvmemctl sources` says why)"));
  EXPECT_THAT(out, HasSubstr("77  1000  3.00 GiB  4.00 GiB           12  1 min 1 s"));
  EXPECT_THAT(out, HasSubstr("python3 /user.slice 2 allocations refused"));
  EXPECT_THAT(out, HasSubstr("moved for compaction 512 OS pages, 3 failed"));
}

TEST(Status, EveryFieldMayBeMissingOrOfAnotherType) {
  const json whole = full_status();
  for (const json& hostile :
       {json(nullptr), json("text"), json(-1), json::array(), json::array({1, "x"}), json::object(),
        json::object({{"a", json::array()}})}) {
    for (const auto& section : whole.items()) {
      json broken = whole;
      broken[section.key()] = hostile;
      EXPECT_FALSE(render_status(broken, {}).empty());
      broken.erase(section.key());
      EXPECT_FALSE(render_status(broken, {}).empty());
      for (const auto& field : section.value().items()) {
        broken = whole;
        if (section.value().is_array()) {
          for (const auto& inner : field.value().items())
            broken[section.key()][0][inner.key()] = hostile;
        } else {
          broken[section.key()][field.key()] = hostile;
        }
        EXPECT_FALSE(render_status(broken, {}).empty());
      }
    }
    EXPECT_FALSE(render_status(hostile, {}).empty());
    EXPECT_FALSE(render_tiers(hostile, {}).empty());
    EXPECT_FALSE(render_regions(hostile, {}).empty());
    EXPECT_FALSE(render_pages(hostile, {}).empty());
    EXPECT_FALSE(render_explain(hostile, {}).empty());
    EXPECT_FALSE(render_explain_cache(hostile, {}).empty());
    for (const json& last : {hostile, json{{"kind", hostile}, {"is_known", hostile}}}) {
      const json status = {{"caches", {{{"last_choice", last}}}}};
      EXPECT_FALSE(render_explain_cache(status, {}).empty());
    }
    EXPECT_FALSE(render_action(hostile, "promoted").empty());
  }
}

TEST(Status, AnEnginesNameCannotWriteToTheTerminal) {
  json status = full_status();
  status["engines"][0]["tag"] = "x\033]0;owned\007";
  EXPECT_THAT(render_status(status, {}), Not(HasSubstr("\033")));
}

TEST(Pages, CountsStatesAboveTheMap) {
  const json pages = {{"region", 7},     {"page_bytes", 2 * kMiB}, {"page_count", 4},
                      {"first_page", 0}, {"state", "RRO."},        {"heat", "9310"},
                      {"pinned", "1000"}};
  const std::string out = render_pages(pages, {});
  EXPECT_THAT(out, StartsWith("region 7: 4 pages of 2.00 MiB, 8.00 MiB\n"));
  EXPECT_THAT(out, HasSubstr("  resident: 2 (50 %)"));
  EXPECT_THAT(out, HasSubstr("  in its file: 1 (25 %)"));
  EXPECT_THAT(out, HasSubstr("        0 RRO.\n"));
  EXPECT_THAT(out, HasSubstr("        0 931.\n"));
  EXPECT_THAT(out, HasSubstr("pinned: 0\n"));
}

TEST(Explain, SaysWhereWhyAndHowItCameThere) {
  const json explain = {
      {"region", 7},
      {"page", 12},
      {"state", "stored"},
      {"tier", "nvme"},
      {"slot", 33},
      {"heat", 0.25},
      {"why", "its next use was expected farthest away"},
      {"moves",
       {{{"ago_s", 3.5}, {"from", "dram"}, {"to", "nvme"}, {"reason", "evict_farthest"}}}}};
  const std::string out = render_explain(explain, {});
  EXPECT_THAT(out, StartsWith("page 7:12 is stored in nvme, slot 33\n"));
  EXPECT_THAT(out, HasSubstr("  its next use was expected farthest away\n"));
  EXPECT_THAT(out, HasSubstr("heat: 0.25"));
  EXPECT_THAT(out, HasSubstr("3.5 s ago  dram  nvme  evict_farthest"));
}

TEST(Explain, SaysWhyBlocksAreReadOrComputed) {
  json cache = {{"uid", 0}, {"block_bytes", 2 * kMiB}, {"last_choice", nullptr}};
  EXPECT_THAT(render_explain_cache({{"caches", {cache}}}, {}),
              HasSubstr("no request has had a choice"));
  cache["choices_read"] = 12;
  cache["left_to_compute"] = 45;
  cache["last_choice"] = {{"ago_s", 3.5},
                          {"kind", "split"},
                          {"blocks", 16},
                          {"stored", 14},
                          {"compute_end", 7},
                          {"overlaps", true},
                          {"is_known", true},
                          {"chosen_ms", 12.5},
                          {"read_ms", 35.0},
                          {"compute_ms", 20.0},
                          {"read_first_ms", 5.0},
                          {"read_page_ms", 2.0},
                          {"compute_first_block_ms", 1.0},
                          {"compute_block_more_ms", 0.1}};
  std::string out = render_explain_cache({{"caches", {cache}}}, {});
  EXPECT_THAT(out, StartsWith("block cache of uid 0, blocks of 2.00 MiB\n"
                              "  last choice, 3.5 s ago: compute what is stored of the first 7 "
                              "blocks, read the rest\n"));
  EXPECT_THAT(out, HasSubstr("16, 14 of them not in DRAM"));
  EXPECT_THAT(out, HasSubstr("12.5 ms, both at once"));
  EXPECT_THAT(out, HasSubstr("35 ms (5 ms to the first page, 2 ms for each more)"));
  EXPECT_THAT(out, HasSubstr("12 read, 0 compute, 0 both; 45 blocks left to compute"));
  cache["last_choice"]["is_known"] = false;
  out = render_explain_cache({{"caches", {cache}}}, {});
  EXPECT_THAT(out, HasSubstr("kvmem_cache_computed"));
  EXPECT_THAT(out, Not(HasSubstr("budget")));
  cache["dram_used_bytes"] = 3 * kMiB;
  cache["dram_capacity_bytes"] = 4 * kMiB;
  cache["dram_share_bytes"] = 8 * kMiB;
  cache["store_share_bytes"] = 0;
  cache["write_budget_refused"] = 17;
  cache["blocks_written"] = 5;
  cache["write_chance_least"] = 0.25;
  json status = {{"caches", {cache}}, {"tiers", {{{"name", "nvme"}, {"write_budget", nullptr}}}}};
  out = render_explain_cache(status, {});
  EXPECT_THAT(out, HasSubstr("3.00 MiB of 4.00 MiB, share of this user: 8.00 MiB\n"));
  EXPECT_THAT(out, HasSubstr("asks for nothing: no share\n"));
  EXPECT_THAT(out, Not(HasSubstr("budget")));
  status["tiers"][0]["write_budget"] = {
      {"bytes_per_day", 2048 * kMiB}, {"saved_bytes", 20 * kMiB}, {"saved_max_bytes", 85 * kMiB}};
  out = render_explain_cache(status, {});
  EXPECT_THAT(out, HasSubstr("2.00 GiB a day, 20.0 MiB of 85.0 MiB saved up\n"));
  EXPECT_THAT(out, HasSubstr("with a chance of 0.25 or more\n"));
  EXPECT_THAT(out, HasSubstr("17 times, 5 blocks written\n"));
  status["caches"][0]["last_choice"] = nullptr;
  EXPECT_THAT(render_explain_cache(status, {}), HasSubstr("17 times, 5 blocks written\n"));
  EXPECT_EQ(render_explain_cache({{"caches", json::array()}}, {}),
            "no engine uses the block cache\n");
}

TEST(Action, SaysHowManyMovedAndWhyOthersDidNot) {
  EXPECT_EQ(render_action(
                {{"pages_asked", 20}, {"pages_moved", 12}, {"pages_refused", 8}, {"why", "pinned"}},
                "demoted"),
            "demoted 12 of 20 pages; 8 refused: pinned\n");
  EXPECT_EQ(render_action({{"pages_asked", 3}, {"pages_moved", 3}}, "promoted"),
            "promoted 3 of 3 pages\n");
}

}  // namespace
}  // namespace kvmem::cli

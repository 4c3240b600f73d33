#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cli/rates.h"
#include "cli/text.h"
#include "cli/top.h"

namespace kvmem::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// What a daemon sends that has counted `n` of everything; the names are an engine's.
json status_at(int n, int pid = 10) {
  json status = json::parse(R"({
    "daemon": {"version": "0.1.0", "warnings": []},
    "tiers": [{"name": "dram", "capacity_bytes": 134217728, "used_bytes": 100663296},
              {"name": "nvme", "capacity_bytes": 1073741824, "used_bytes": 0,
               "disk": {"own_read_bytes_s": 1048576.0, "other_read_bytes_s": 3145728.0,
                        "own_write_bytes_s": 0.0, "other_write_bytes_s": 0.0,
                        "read_p50_us": 512, "read_p99_us": 4096}},
              {"name": "origin", "files": 2, "size_bytes": 1048576}],
    "engines": [{"session": "1", "pid": 99, "tag": "llama", "size_bytes": 268435456,
                 "resident_bytes": 67108864, "stalls": {"reclaim_ms": 0.0}},
                {"session": "2", "pid": 100, "tag": "other", "size_bytes": 268435456,
                 "resident_bytes": 33554432, "stalls": null}],
    "regions": [{"region": 3, "id": "11", "pid": 99, "tag": "llama", "path": "/m.gguf",
                 "page_bytes": 2097152, "size_bytes": 268435456, "resident_pages": 32,
                 "heat_pages": 16.0},
                {"region": 4, "id": "12", "pid": 100, "tag": "kv", "path": "",
                 "page_bytes": 2097152, "size_bytes": 268435456, "resident_pages": 16,
                 "heat_pages": 48.0}],
    "gpu_processes": [{"pid": 77, "name": "python3", "cgroup": "/user.slice",
                       "device_bytes": 3221225472, "device_peak_bytes": 4294967296,
                       "idle_s": 61.0}],
    "sources": [{"name": "sampling", "on": true}, {"name": "gpu", "on": false}]})");
  status["daemon"]["pid"] = pid;
  status["daemon"]["uptime_s"] = 60 + n;
  for (const char* counter :
       {"faults_missing", "faults_minor", "faults_wp", "demand_waits", "promotions", "demotions",
        "prefetches", "store_read_bytes", "store_write_bytes", "origin_read_bytes"}) {
    status["counters"][counter] = n;
  }
  status["counters"]["prefetch_useful"] = 3 * n;
  status["counters"]["prefetch_wasted"] = n;
  status["moves_by_reason"] = {{"prefetch_order", 5 * n}, {"demand", 7}};
  status["engines"][0]["faults"] = 10 * n;
  status["engines"][1]["faults"] = 20 * n;
  status["engines"][0]["stalls"]["reclaim_ms"] = 2.0 * n;
  status["regions"][0]["faults"] = 40 * n;
  status["regions"][1]["faults"] = 30 * n;
  return status;
}

std::string text_of(const Line& line) {
  std::string out;
  for (const Span& span : line) out += span.text;
  return out;
}
std::string text_of(const Frame& frame) {
  std::string out;
  for (const Line& line : frame.lines) out += text_of(line) + "\n";
  return out;
}

TopFacts facts_of(json before, json now, double elapsed_s = 2) {
  TopFacts facts;
  facts.before = std::move(before);
  facts.now = std::move(now);
  facts.elapsed_s = elapsed_s;
  return facts;
}

TEST(Rates, AreWhatCountersGrewByInASecond) {
  const Rates rates = rates_between(status_at(100), status_at(200), 2);
  EXPECT_FALSE(rates.restarted);
  EXPECT_DOUBLE_EQ(rates.demotions.value_or(-1), 50);
  EXPECT_DOUBLE_EQ(rates.faults.value_or(-1), 150);  // of three kinds
  EXPECT_DOUBLE_EQ(rates.engines.at(1).faults.value_or(-1), 1000);
  EXPECT_DOUBLE_EQ(rates.engines.at(0).stall_ms.value_or(-1), 100);
  EXPECT_DOUBLE_EQ(rates.regions.at(0).faults.value_or(-1), 2000);
  ASSERT_EQ(rates.moves.size(), 1u);  // nothing moved on demand
  EXPECT_EQ(rates.moves[0].first, "prefetch_order");
  EXPECT_DOUBLE_EQ(rates.moves[0].second, 250);
  EXPECT_EQ(rates.regions.at(1).heat_bytes, std::uint64_t{48} << 21);
}

TEST(Rates, OfADaemonThatRestartedAreUnknownNotNegative) {
  for (const json& after : {status_at(50, 11), status_at(500, 11), status_at(50, 10)}) {
    const Rates rates = rates_between(status_at(100), after, 1);
    EXPECT_TRUE(rates.restarted);
    EXPECT_FALSE(rates.demotions || rates.faults || rates.store_read_bytes);
    EXPECT_FALSE(rates.engines.at(0).faults || rates.engines.at(0).stall_ms);
    EXPECT_FALSE(rates.regions.at(0).faults);
    EXPECT_TRUE(rates.moves.empty());
  }
}

TEST(Rates, OfAnEngineOrRegionThatIsNewAreUnknown) {
  json now = status_at(200);
  now["engines"][0]["session"] = "7";
  now["regions"][0]["id"] = "17";  // the number is another region's now
  const Rates rates = rates_between(status_at(100), now, 1);
  EXPECT_FALSE(rates.engines.at(0).faults);
  EXPECT_TRUE(rates.engines.at(1).faults);
  EXPECT_FALSE(rates.regions.at(0).faults);
  EXPECT_TRUE(rates.regions.at(1).faults);
  EXPECT_FALSE(rates.engines.at(1).stall_ms);  // nobody watches its stalls
}

TEST(Rates, AfterOneAnswerAreUnknown) {
  const Rates rates = rates_between(nullptr, status_at(200), 0);
  EXPECT_FALSE(rates.restarted);
  EXPECT_FALSE(rates.demotions || rates.engines.at(0).faults);
  EXPECT_EQ(rates.engines.at(0).resident_bytes, 67108864u);
}

TEST(Rates, AsJsonHaveNullForWhatIsUnknown) {
  const json now = status_at(200);
  const json out = rates_json(rates_between(status_at(100), now, 2), now);
  EXPECT_EQ(out["demotions_s"], 50.0);
  EXPECT_EQ(out["regions"][0]["faults_s"], 2000.0);
  EXPECT_TRUE(out["engines"][1]["stall_ms_s"].is_null());
  EXPECT_EQ(out["moves_s"]["prefetch_order"], 250.0);
}

TEST(Top, ShowsTiersRatesEnginesRegionsAndWhatIsOff) {
  const std::string out = top_text(facts_of(status_at(100), status_at(200)), SortBy::kHeat, 140);
  EXPECT_THAT(out, HasSubstr("kvmemd 0.1.0  pid 10  up 4 min 20 s  over 2.0 s\n"));
  EXPECT_THAT(out, HasSubstr("dram    [##################......]  96.0 MiB of 128 MiB, 75 %"));
  EXPECT_THAT(out, HasSubstr("reads     1.00 MiB/s for kvmem    3.00 MiB/s for others  a request < "
                             "512 us, p99 < 4.10 ms"));
  EXPECT_THAT(out, HasSubstr("faults 150  waits for a tier 50  into DRAM 50  out of DRAM 50"));
  EXPECT_THAT(out, HasSubstr("moves: prefetch order 250\n"));
  EXPECT_THAT(out, HasSubstr("fetched ahead 50; of those whose end is known 75 % were used"));
  EXPECT_THAT(out, HasSubstr(" 99  256 MiB  64.0 MiB  25 %       500        100.0  llama"));
  EXPECT_THAT(out, HasSubstr("100  256 MiB  32.0 MiB  12 %     1,000            -  other"));
  EXPECT_THAT(out, HasSubstr("llama, /m.gguf"));
  EXPECT_THAT(out, HasSubstr("python3 /user.slice"));
  EXPECT_THAT(out, HasSubstr("off: gpu (`kvmemctl sources` says why)"));
}

TEST(Top, WithoutADiskProbeOursIsWhatTheDaemonCounted) {
  json now = status_at(4 << 20);
  now["tiers"][1]["disk"] = nullptr;
  const std::string out = top_text(facts_of(status_at(0), now), SortBy::kHeat, 100);
  // From the store and from files.
  EXPECT_THAT(out, AllOf(HasSubstr("reads     4.00 MiB/s for kvmem\n"),
                         HasSubstr("writes    2.00 MiB/s for kvmem\n"), Not(HasSubstr("others"))));
}

TEST(Top, RegionsAndEnginesAreSortedAsAskedFor) {
  const TopFacts facts = facts_of(status_at(100), status_at(200));
  const auto first_is = [&](SortBy sort, const char* first, const char* second) {
    const std::string out = top_text(facts, sort, 140);
    return out.find(first) < out.find(second) && out.find(second) != std::string::npos;
  };
  EXPECT_TRUE(first_is(SortBy::kHeat, "kv\n", "llama, /m.gguf"));
  EXPECT_TRUE(first_is(SortBy::kResident, "llama, /m.gguf", "kv\n"));
  EXPECT_TRUE(first_is(SortBy::kFaults, "llama, /m.gguf", "kv\n"));
  EXPECT_TRUE(first_is(SortBy::kResident, "llama\n", "other\n"));
  EXPECT_TRUE(first_is(SortBy::kFaults, "other\n", "llama\n"));
  EXPECT_EQ(next_sort(next_sort(next_sort(SortBy::kHeat))), SortBy::kHeat);
}

TEST(Top, NothingIsWiderOrLongerThanTheScreen) {
  json now = status_at(200);
  now["engines"][0]["tag"] = std::string(300, 'x') + "\xC3\xB6";
  now["daemon"]["warnings"] = {std::string(30, 'w') + " " + std::string(300, 'w')};
  TopFacts facts = facts_of(status_at(100), now);
  for (const std::string& error : {std::string(), std::string("no daemon at /run/kvmem")}) {
    facts.error = error;
    for (unsigned columns = 0; columns < 130; columns += columns < 12 ? 1 : 13) {
      for (unsigned rows = 0; rows < 60; rows += rows < 8 ? 1 : 9) {
        for (const bool help : {false, true}) {
          TopView view;
          view.columns = columns;
          view.rows = rows;
          view.help = help;
          view.scroll = 5;
          const Frame frame = top_frame(facts, view);
          ASSERT_LE(frame.lines.size(), columns == 0 ? 0 : rows);
          for (const Line& line : frame.lines) ASSERT_LE(columns_of(text_of(line)), columns);
        }
      }
    }
  }
}

TEST(Top, ClippedNamesStayWholeCharacters) {
  json now = status_at(200);
  now["engines"][0]["tag"] = "\xC3\xB6\xC3\xB6\xC3\xB6\xC3\xB6\xC3\xB6\xC3\xB6\xC3\xB6\xC3\xB6";
  TopFacts facts = facts_of(nullptr, now, 0);
  TopView view;
  view.rows = 100;
  for (view.columns = 50; view.columns < 80; ++view.columns) {
    for (const Line& line : top_frame(facts, view).lines) {
      const std::string text = text_of(line);
      EXPECT_TRUE(text.empty() || text.back() != '\xC3') << view.columns;
    }
  }
}

TEST(Top, ScrollsTheMiddleAndKeepsTitleAndKeys) {
  json now = status_at(200);
  for (int i = 0; i < 50; ++i) {
    json engine = now["engines"][0];
    engine["session"] = "s" + std::to_string(i);
    engine["resident_bytes"] = 1000 - i;
    engine["tag"] = "engine-" + std::to_string(i) + ".";
    now["engines"].push_back(engine);
  }
  const TopFacts facts = facts_of(status_at(100), now);
  TopView view;
  const Frame top = top_frame(facts, view);
  EXPECT_EQ(top.lines.size(), view.rows);
  EXPECT_THAT(text_of(top), Not(HasSubstr("engine-49.")));
  EXPECT_THAT(text_of(top), HasSubstr("lines 1-22 of "));
  view.scroll = top.scroll_max;
  const std::string end = text_of(top_frame(facts, view));
  EXPECT_THAT(end, AllOf(HasSubstr("kvmemd 0.1.0"), HasSubstr("q quit"), HasSubstr("off: gpu")));
  EXPECT_THAT(end, HasSubstr("engine-49."));
  view.scroll = SIZE_MAX;  // beyond the end is the end
  EXPECT_EQ(text_of(top_frame(facts, view)), end);
}

TEST(Top, WhatHasNoAnswerSaysWhyAndShowsNothingOld) {
  TopFacts facts = facts_of(status_at(100), status_at(200));
  facts.error = "no daemon at /run/kvmem/kvmemd.sock: start one";
  const std::string out = text_of(top_frame(facts, {}));
  EXPECT_THAT(out, AllOf(HasSubstr("no daemon at /run/kvmem/kvmemd.sock: start one"),
                         HasSubstr("asking again every 1.0 s"), HasSubstr("q quit")));
  EXPECT_THAT(out, Not(HasSubstr("llama")));
  EXPECT_THAT(text_of(top_frame({}, {})), HasSubstr("waiting for the daemon's first answer"));
}

TEST(Top, ARestartIsSaidAndNoRateIsShown) {
  const std::string out = top_text(facts_of(status_at(100), status_at(50, 11)), SortBy::kHeat, 100);
  EXPECT_THAT(out, HasSubstr("the daemon restarted"));
  EXPECT_THAT(out, HasSubstr("faults -  waits for a tier -"));
}

TEST(Top, AnEnginesNameCannotWriteToTheTerminal) {
  json now = status_at(200);
  now["engines"][0]["tag"] = "x\033]0;owned\007";
  now["regions"][0]["path"] = "/a\033[2J";
  now["gpu_processes"][0]["name"] = "y\033[1m";
  now["moves_by_reason"]["z\033[1m"] = 400;
  now["daemon"]["warnings"] = {"w\033[2J"};
  TopFacts facts = facts_of(status_at(100), now);
  EXPECT_THAT(top_text(facts, SortBy::kHeat, 200), AllOf(Not(HasSubstr("\033")), HasSubstr("z?")));
  facts.error = "refused\033[2J";
  EXPECT_THAT(text_of(top_frame(facts, {})), Not(HasSubstr("\033")));
}

TEST(Top, EveryFieldMayBeMissingOrOfAnotherType) {
  const json whole = status_at(200);
  for (const json& hostile :
       {json(nullptr), json("text"), json(-1), json(1e300), json::array(), json::array({1, "x"}),
        json::object(), json::object({{"a", json::array()}})}) {
    for (const auto& section : whole.items()) {
      std::vector<json> broken(2, whole);
      broken[0][section.key()] = hostile;
      broken[1].erase(section.key());
      for (const auto& field : section.value().items()) {
        json one = whole;
        if (section.value().is_array()) {
          for (const auto& inner : field.value().items()) {
            one[section.key()][0][inner.key()] = hostile;
          }
        } else {
          one[section.key()][field.key()] = hostile;
        }
        broken.push_back(std::move(one));
      }
      for (const json& b : broken) {
        EXPECT_FALSE(top_text(facts_of(b, whole), SortBy::kHeat, 80).empty());
        EXPECT_FALSE(top_text(facts_of(whole, b), SortBy::kFaults, 80).empty());
      }
    }
    EXPECT_FALSE(top_text(facts_of(hostile, hostile), SortBy::kHeat, 80).empty());
  }
}

}  // namespace
}  // namespace kvmem::cli

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "cli/heat_map.h"
#include "cli/heat_svg.h"

namespace kvmem::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint64_t kPageBytes = std::uint64_t{2} << 20;

std::size_t count_of(const std::string& text, const std::string& what) {
  std::size_t count = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
    ++count;
  }
  return count;
}

TEST(HeatMap, ABinIsAsHotAsItsHottestPageAndInDramFromHalfOn) {
  const HeatMap map(0, 7, kPageBytes, 3, 10);
  EXPECT_EQ(map.bin_pages(), 3u);
  ASSERT_EQ(map.bins(), 3u);
  const HeatSample sample = map.sample("RSSrWSX", "0910051");
  EXPECT_EQ(sample.heat, "951");
  EXPECT_EQ(sample.resident, "010");
  EXPECT_EQ(map.sample("SSSSRrS", "0000000").resident, "010");  // 2 of 3
}

TEST(HeatMap, WhatAnAnswerLacksIsColdAndElsewhere) {
  const HeatMap map(0, 4, kPageBytes, 4, 10);
  const HeatSample sample = map.sample("RR", "9x:");
  EXPECT_EQ(sample.heat, "9000");
  EXPECT_EQ(sample.resident, "1100");
}

TEST(HeatMap, HoldsAnyTimeInBoundedRows) {
  for (const std::size_t rows_max : {1, 2, 3, 4, 7, 64}) {
    HeatMap map(0, 2, kPageBytes, 2, rows_max);
    for (int i = 0; i < 1000; ++i) {
      map.add(i, i + 1, "RS", i == 500 ? "90" : "01");
      const auto& samples = map.samples();
      ASSERT_LE(samples.size(), rows_max);
      EXPECT_EQ(samples.front().at_s, 0);
      EXPECT_EQ(samples.back().until_s, i + 1);
      for (std::size_t s = 1; s < samples.size(); ++s) {
        ASSERT_EQ(samples[s].at_s, samples[s - 1].until_s);  // no time is lost or counted twice
      }
    }
    // The one hot moment is where it was, and nowhere else.
    for (const HeatSample& s : map.samples()) {
      EXPECT_EQ(s.heat, s.at_s <= 500 && 500 < s.until_s ? "91" : "01") << rows_max;
      EXPECT_EQ(s.resident, "10");
    }
    EXPECT_GE(2 * map.samples().size() + 1, rows_max);  // and not bounded by losing detail early
  }
}

TEST(HeatMap, ASampleStandsUntilTheNext) {
  HeatMap map(0, 1, kPageBytes, 1, 8);
  map.add(0, 1, "R", "1");
  map.add(5, 6, "R", "2");  // the daemon was slow
  EXPECT_EQ(map.samples()[0].until_s, 5);
  EXPECT_EQ(map.samples()[1].until_s, 6);
}

TEST(HeatSvg, CellsAlikeAreOneAndTheColdestAreTheGround) {
  HeatMap map(0, 8, kPageBytes, 8, 8);
  map.add(0, 1, "RRRRSSSS", "77770000");
  map.add(1, 2, "SSSSSSSS", "00009900");
  const std::string svg = heat_svg(map, "region 3");
  const std::string cells = svg.substr(svg.find("<g id=\"heat\">"));
  const std::string heat = cells.substr(0, cells.find("</g>"));
  EXPECT_EQ(count_of(heat, "<rect"), 2u);
  EXPECT_THAT(heat,
              HasSubstr("<rect class=\"h7\" x=\"76\" y=\"78\" width=\"450\" height=\"230\"/>"));
  EXPECT_THAT(heat,
              HasSubstr("<rect class=\"h9\" x=\"526\" y=\"308\" width=\"225\" height=\"230\"/>"));
  const std::string rest = cells.substr(heat.size() + 4);
  const std::string dram = rest.substr(0, rest.find("</g>"));
  EXPECT_EQ(count_of(dram, "<rect"), 1u);
  EXPECT_THAT(dram,
              HasSubstr("<rect class=\"dram\" x=\"76\" y=\"304\" width=\"450\" height=\"4\"/>"));
}

TEST(HeatSvg, HasAxesWithUnitsLegendAndBothGrounds) {
  HeatMap map(64, 128, kPageBytes, 300, 8);
  map.add(0, 30, "R", "1");
  const std::string svg = heat_svg(map, "region 3");
  EXPECT_THAT(
      svg, AllOf(HasSubstr("time, s"), HasSubstr("address in the region"), HasSubstr(">128 MiB<"),
                 HasSubstr(">384 MiB<"), HasSubstr(">30<"), HasSubstr("in use every time around"),
                 HasSubstr("in DRAM"), HasSubstr("prefers-color-scheme:dark")));
  EXPECT_THAT(svg, Not(HasSubstr("href")));  // nothing from elsewhere
}

TEST(HeatSvg, AnEnginesNameIsTextOnly) {
  HeatMap map(0, 1, kPageBytes, 1, 1);
  map.add(0, 1, "R", "1");
  const std::string svg = heat_svg(map,
                                   "a<script>&\"\033\x01 \xEF\xBF\xBF gr\xC3\xB6\xC3\x9F"
                                   "e");
  EXPECT_THAT(svg, HasSubstr("a&lt;script&gt;&amp;&quot;?? ? gr\xC3\xB6\xC3\x9F"
                             "e"));
  EXPECT_THAT(svg,
              AllOf(Not(HasSubstr("<script")), Not(HasSubstr("\033")), Not(HasSubstr("\x01"))));
}

TEST(HeatSvg, WithoutSamplesIsStillADrawing) {
  EXPECT_THAT(heat_svg(HeatMap(0, 1, kPageBytes, 1, 1), "x"), HasSubstr("</svg>"));
}

}  // namespace
}  // namespace kvmem::cli

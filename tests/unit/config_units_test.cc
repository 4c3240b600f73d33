#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "config/units.h"

namespace kvmem::config {
namespace {

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

std::uint64_t size_of(const char* text, std::uint64_t whole = 0) {
  Result<std::uint64_t> size = parse_size(text, whole);
  EXPECT_TRUE(size.ok()) << text << ": " << size.status().what();
  return size.ok() ? *size : ~std::uint64_t{0};
}

std::uint64_t duration_of(const char* text) {
  Result<std::uint64_t> duration = parse_duration(text);
  EXPECT_TRUE(duration.ok()) << text << ": " << duration.status().what();
  return duration.ok() ? *duration : ~std::uint64_t{0};
}

TEST(Size, BinaryAndDecimalUnitsDiffer) {
  EXPECT_EQ(size_of("12GiB"), 12 * kGiB);
  EXPECT_EQ(size_of("12G"), 12 * kGiB);
  EXPECT_EQ(size_of("12GB"), 12'000'000'000u);
  EXPECT_EQ(size_of("3TiB"), 3 * 1024 * kGiB);
  EXPECT_EQ(size_of("64MiB"), 64u << 20);
  EXPECT_EQ(size_of("7K"), 7u << 10);
}

TEST(Size, PlainNumberIsBytes) {
  EXPECT_EQ(size_of("0"), 0u);
  EXPECT_EQ(size_of("4096"), 4096u);
  EXPECT_EQ(size_of("4096 B"), 4096u);
}

TEST(Size, WholeNumbersStayExactAboveDoublePrecision) {
  EXPECT_EQ(size_of("9007199254740993"), 9007199254740993u);  // 2^53 + 1
}

TEST(Size, FractionsAreOfTheUnit) { EXPECT_EQ(size_of("1.5GiB"), kGiB + kGiB / 2); }

TEST(Size, PercentIsOfTheWholeAndNeedsOne) {
  EXPECT_EQ(size_of("60%", 1000), 600u);
  EXPECT_EQ(size_of("12.5%", 1000), 125u);
  EXPECT_EQ(size_of("100%", 16 * kGiB), 16 * kGiB);
  EXPECT_FALSE(parse_size("60%").ok());
  EXPECT_FALSE(parse_size("101%", 1000).ok());
}

TEST(Size, RefusesWhatItCannotReadWhole) {
  for (const char* text : {"", " ", "GiB", "-1", "+1", "1e9", "12 GiBs", "12gib", "1..5G", ".5G",
                           "5.", "0x10", "12G iB", "nan", "inf", "1,5G"}) {
    EXPECT_FALSE(parse_size(text, 1000).ok()) << '"' << text << '"';
  }
}

TEST(Size, RefusesWhatDoesNotFit) {
  EXPECT_FALSE(parse_size("99999999999999999999").ok());
  EXPECT_FALSE(parse_size("9000000TiB").ok());
}

TEST(Size, ShownSizeReadsBackAsItself) {
  for (const std::uint64_t size :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1023}, std::uint64_t{1024}, 3 * kGiB / 2,
        12 * kGiB, 5 * 1024 * kGiB, kGiB + 1}) {
    EXPECT_EQ(size_of(show_size(size).c_str()), size) << show_size(size);
  }
  EXPECT_EQ(show_size(12 * kGiB), "12GiB");
  EXPECT_EQ(show_size(3 * kGiB / 2), "1536MiB");
  EXPECT_EQ(show_size(kGiB + 1), "1073741825B");
}

TEST(Duration, NeedsAUnit) {
  EXPECT_EQ(duration_of("50ms"), 50'000'000u);
  EXPECT_EQ(duration_of("1.5s"), 1'500'000'000u);
  EXPECT_EQ(duration_of("2min"), 120'000'000'000u);
  EXPECT_EQ(duration_of("7us"), 7000u);
  EXPECT_FALSE(parse_duration("50").ok());
  EXPECT_FALSE(parse_duration("50 fortnights").ok());
  EXPECT_FALSE(parse_duration("-1s").ok());
}

TEST(Duration, ShownDurationReadsBackAsItself) {
  for (const std::uint64_t ns :
       {0ull, 1ull, 999ull, 1000ull, 1'500'000'000ull, 120'000'000'000ull}) {
    EXPECT_EQ(duration_of(show_duration(ns).c_str()), ns) << show_duration(ns);
  }
  EXPECT_EQ(show_duration(50'000'000), "50ms");
}

}  // namespace
}  // namespace kvmem::config

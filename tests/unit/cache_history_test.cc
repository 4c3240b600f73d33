#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cache/history.h"

namespace kvmem::cache {
namespace {

namespace fs = std::filesystem;

class HistoryTest : public testing::Test {
 protected:
  HistoryTest() {
    fs::remove(path_);
    fs::remove(path_ + ".old");
  }

  static History::Entry entry(std::uint64_t n) {
    History::Entry e;
    e.time_ms = 1000 + n;
    e.input_tokens = 7;
    e.output_tokens = static_cast<std::uint32_t>(n);
    e.tail_is_partial = n % 2 == 0;
    for (std::uint64_t i = 0; i < n % 5; ++i) e.path.push_back({n, i});
    return e;
  }
  static bool is(const History::Entry& e, std::uint64_t n) {
    const History::Entry want = entry(n);
    return e.time_ms == want.time_ms && e.input_tokens == 7 &&
           e.output_tokens == want.output_tokens && e.tail_is_partial == want.tail_is_partial &&
           e.path == want.path;
  }
  // The numbers of what a next daemon would read; then it appends [first, end).
  std::vector<std::uint64_t> life(std::uint64_t first, std::uint64_t end,
                                  std::uint64_t blocks_max = 1'000'000) {
    History history(path_, owner_, blocks_max, workers_);
    std::vector<std::uint64_t> seen;
    history.read([&](const History::Entry& e) {
      EXPECT_TRUE(is(e, e.time_ms - 1000));
      seen.push_back(e.time_ms - 1000);
    });
    for (std::uint64_t n = first; n < end; ++n) {
      history.append(entry(n));
      if (n % 3 == 0) history.flush();
    }
    history.close();
    EXPECT_TRUE(history.idle());
    return seen;
  }

  const std::string path_ = testing::TempDir() + "history_" + std::to_string(::getpid());
  History::Owner owner_{12, 4096};
  os::InlineExecutor workers_;
};

TEST_F(HistoryTest, IsReadByTheNextDaemonAndGoneOnWith) {
  EXPECT_TRUE(life(0, 10).empty());
  EXPECT_EQ(life(10, 12).size(), 10U);
  const auto all = life(12, 12);
  ASSERT_EQ(all.size(), 12U);
  for (std::uint64_t n = 0; n < 12; ++n) EXPECT_EQ(all[n], n);
  auto owner = History::owner_of(path_);
  ASSERT_TRUE(owner.ok());
  EXPECT_EQ(*owner, owner_);
}

TEST_F(HistoryTest, IsBoundedAndKeepsTheLatest) {
  for (std::uint64_t n = 0; n < 5000; n += 50) life(n, n + 50, 100);
  const auto seen = life(0, 0, 100);
  EXPECT_EQ(seen.back(), 4999U);
  EXPECT_GE(seen.size(), 20U);
  EXPECT_LE(fs::file_size(path_) + fs::file_size(path_ + ".old"), 4U * 100 * 16 + 8192);
}

// Wherever it is cut, and whichever bit is wrong: what was right before is read, and gone on with.
TEST_F(HistoryTest, EndsWhereItIsNotRight) {
  life(0, 40);
  std::ifstream in(path_, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  for (std::size_t at = 0; at < good.size(); at += 13) {
    for (const bool cut : {true, false}) {
      std::string bad = good;
      if (cut) {
        bad.resize(at);
      } else {
        bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
      }
      std::ofstream(path_, std::ios::binary) << bad;
      const std::size_t before = life(100, 101).size();
      EXPECT_LT(before, 40U) << at;
      const auto after = life(0, 0);
      ASSERT_EQ(after.size(), before + 1) << at;
      EXPECT_EQ(after.back(), 100U);
    }
  }
}

TEST_F(HistoryTest, OfAnotherOwnerIsNotRead) {
  life(0, 5);
  owner_.uid = 13;
  EXPECT_TRUE(life(0, 0).empty());
  owner_ = {12, 8192};
  EXPECT_TRUE(life(0, 2).empty());
  EXPECT_EQ(life(0, 0).size(), 2U);
}

TEST_F(HistoryTest, GivesUpWhereItCannotBeWritten) {
  History history(testing::TempDir() + "no such folder/history", owner_, 100, workers_);
  history.read([](const History::Entry&) { FAIL(); });
  history.append(entry(1));
  history.flush();
  history.append(entry(2));
  history.close();
  EXPECT_TRUE(history.idle());
}

}  // namespace
}  // namespace kvmem::cache

// What is made of two reads of the disk probe's counters.

#include <gtest/gtest.h>

#include "probe/disk.h"

namespace kvmem {
namespace {

TEST(DiskUse, IsWhatHappenedBetweenTwoReads) {
  kvmem_disk from{};
  from.own_bytes[0] = 1000;
  from.latency[0][9] = 5;
  kvmem_disk to = from;
  to.own_bytes[0] += 4'000'000;
  to.other_bytes[1] += 1'000'000;
  to.latency[0][3] += 98;  // 8 to 16 us
  to.latency[0][12] += 2;  // 4096 to 8192 us
  const probe::DiskUse use = probe::use_between(from, to, 2'000'000'000);
  EXPECT_DOUBLE_EQ(use.own_read_bytes_s, 2e6);
  EXPECT_DOUBLE_EQ(use.other_write_bytes_s, 5e5);
  EXPECT_DOUBLE_EQ(use.own_write_bytes_s, 0);
  EXPECT_EQ(use.read_p50_us, 16u);
  EXPECT_EQ(use.read_p99_us, 8192u);
  EXPECT_EQ(use.write_p99_us, 0u);
  EXPECT_DOUBLE_EQ(probe::use_between(from, to, 0).own_read_bytes_s, 0);
}

}  // namespace
}  // namespace kvmem

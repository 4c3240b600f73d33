// The disk below a path, in trees that stand for /sys, and what is made of two reads of its
// counters.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <fstream>

#include "os/disk.h"
namespace kvmem {
namespace {

namespace fs = std::filesystem;

class DiskOf : public ::testing::Test {
 protected:
  void SetUp() override {
    struct stat info {};
    ASSERT_EQ(::stat(root_.c_str(), &info), 0);
    device_ = info.st_dev;
    if (major(device_) == 0) GTEST_SKIP() << "the temporary folder lies on no disk";
    fs::create_directories(sys_ / "dev/block");
  }
  ~DiskOf() override { fs::remove_all(root_); }

  // A device of that number at `path` below /sys/devices.
  fs::path add(const std::string& path, dev_t number) {
    const fs::path entry = sys_ / "devices" / path;
    fs::create_directories(entry);
    const std::string text = std::to_string(major(number)) + ":" + std::to_string(minor(number));
    std::ofstream(entry / "dev") << text << "\n";
    fs::create_directory_symlink(entry, sys_ / "dev/block" / text);
    return entry;
  }
  static void add_slave(const fs::path& entry, const fs::path& slave) {
    fs::create_directories(entry / "slaves");
    fs::create_directory_symlink(slave, entry / "slaves" / slave.filename());
  }

  static fs::path make_root() {
    std::string name = (fs::temp_directory_path() / "kvmem-disk-XXXXXX").string();
    return ::mkdtemp(name.data());
  }

  const fs::path root_ = make_root();
  const fs::path sys_ = root_ / "sys";
  const std::string file_ = root_ / "store";  // never made: its folder is looked at
  dev_t device_ = 0;
};

TEST_F(DiskOf, AWholeDiskIsItself) {
  add("nvme0n1", device_);
  auto disk = os::disk_of(file_, sys_);
  ASSERT_TRUE(disk.ok()) << disk.status().what();
  EXPECT_EQ(*disk, "nvme0n1");
}

TEST_F(DiskOf, APartitionLiesOnItsDisk) {
  const dev_t whole = makedev(4000, 7);
  add("nvme0n1", whole);
  std::ofstream(add("nvme0n1/nvme0n1p2", device_) / "partition") << "2\n";
  auto disk = os::disk_of(file_, sys_);
  ASSERT_TRUE(disk.ok()) << disk.status().what();
  EXPECT_EQ(*disk, "nvme0n1");
}

TEST_F(DiskOf, AVolumeOnAPartitionLiesOnTheDiskBelowBoth) {
  const dev_t whole = makedev(4000, 7);
  add("nvme0n1", whole);
  const fs::path part = add("nvme0n1/nvme0n1p2", makedev(4000, 9));
  std::ofstream(part / "partition") << "2\n";
  add_slave(add("dm-0", device_), part);
  auto disk = os::disk_of(file_, sys_);
  ASSERT_TRUE(disk.ok()) << disk.status().what();
  EXPECT_EQ(*disk, "nvme0n1");
}

TEST_F(DiskOf, AVolumeOnTwoDisksIsRefused) {
  const fs::path volume = add("dm-0", device_);
  add_slave(volume, add("nvme0n1", makedev(4000, 7)));
  add_slave(volume, add("nvme1n1", makedev(4000, 8)));
  auto disk = os::disk_of(file_, sys_);
  ASSERT_FALSE(disk.ok());
  EXPECT_THAT(disk.status().what(), ::testing::HasSubstr("several disks"));
}

TEST_F(DiskOf, AVolumeThatLiesOnItselfEnds) {
  const fs::path volume = add("dm-0", device_);
  add_slave(volume, volume);
  EXPECT_FALSE(os::disk_of(file_, sys_).ok());
}

TEST_F(DiskOf, WhatSysfsDoesNotHaveIsRefused) {
  EXPECT_FALSE(os::disk_of(file_, sys_).ok());
  EXPECT_EQ(os::disk_of("/no/such/folder/store", sys_).status().code(), Code::kErrno);
}

TEST_F(DiskOf, PathsOfAnNvmeDiskHaveItsNumbers) {
  for (const char* name : {"nvme0n1", "nvme0c0n1", "nvme0c13n1", "nvme0c0n11", "nvme10c0n1", "sda"})
    fs::create_directories(sys_ / "block" / name);
  EXPECT_THAT(os::paths_of("nvme0n1", sys_),
              ::testing::UnorderedElementsAre("nvme0c0n1", "nvme0c13n1"));
  EXPECT_THAT(os::paths_of("sda", sys_), ::testing::IsEmpty());
  EXPECT_THAT(os::paths_of("nvme0n1", root_ / "none"), ::testing::IsEmpty());
}

}  // namespace
}  // namespace kvmem

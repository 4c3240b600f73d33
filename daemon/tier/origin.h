// Origin: the tier of clean pages that a file holds already, a model's weights. Nothing is ever
// written; dropping a page is free.
//
// The engine opened the file, so it may read it: the descriptor it passes is the permission. Reads
// bypass the page cache where the file system allows (O_DIRECT): the weights shall not take memory
// twice.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/unique_handle.h"

namespace kvmem::tier {

// One file's contents at one time. Files that were rewritten are others.
struct OriginKey {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const OriginKey&) const = default;
};

class Origin {
 public:
  // kUnsupported for anything but a regular file that is open for reading.
  static Result<Origin> open(UniqueFd engine_fd);
  static Result<OriginKey> key_of(int fd);

  const OriginKey& key() const { return key_; }
  const std::string& path() const { return path_; }
  bool direct() const { return direct_; }
  int fd() const { return fd_.get(); }
  std::uint64_t size_bytes() const { return key_.size_bytes; }
  // How many bytes of [offset, offset + size) the file has; the rest reads as zeroes.
  std::uint64_t bytes_at(std::uint64_t offset, std::uint64_t size_bytes) const;

 private:
  OriginKey key_;
  std::string path_;
  UniqueFd fd_;
  bool direct_ = false;
};

}  // namespace kvmem::tier

// History: the requests a block cache has served of late, in a file, so that the policies of the
// next daemon know what those of this one did: what comes back, and what of the store is worth its
// place.
//
// Two files, PATH and PATH.old: when the first is full it becomes the second. Appended to by a
// worker, at most one write at a time, nothing is synced: what a crash of the host cuts off is
// forgotten, no more. Each entry has a checksum; reading ends at the first that is not right.
//
// Loop only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_handle.h"
#include "os/workers.h"

namespace kvmem::cache {

class History {
 public:
  struct Owner {  // of the blocks in it
    std::uint32_t uid = 0;
    std::uint64_t block_bytes = 0;
    bool operator==(const Owner&) const = default;
  };
  struct Entry {
    std::uint64_t time_ms = 0;
    std::uint32_t input_tokens = 0;
    std::uint32_t output_tokens = 0;
    bool tail_is_partial = false;
    std::vector<std::array<std::uint64_t, 2>> path;  // ids of blocks
  };

  // Whose the file at `path` is; kInvalid: nobody's.
  static Result<Owner> owner_of(const std::string& path);
  // `blocks_max`: of all entries in each of the two files.
  History(std::string path, Owner owner, std::uint64_t blocks_max, os::Executor& workers);
  // REQUIRES: idle().
  ~History();
  History(const History&) = delete;
  History& operator=(const History&) = delete;

  // Waits for the disk: reads both files, the oldest entry first. Once, before anything is
  // appended.
  void read(const std::function<void(const Entry&)>& consume);
  void append(const Entry& entry);
  // Writes what has been appended since, if nothing is being written. Call at times.
  void flush();
  // Likewise, and then the rest; nothing is appended any more.
  void close();
  bool idle() const { return !busy_; }
  // Both files. REQUIRES: idle().
  void remove();

 private:
  struct Write : os::Job {
    History* history = nullptr;
    std::vector<std::uint64_t> words;
    bool failed = false;
  };
  bool write(const std::vector<std::uint64_t>& words);  // any thread, one at a time

  const std::string path_;
  const Owner owner_;
  const std::uint64_t bytes_max_;
  os::Executor& workers_;
  std::vector<std::uint64_t> pending_;
  Write write_;
  bool busy_ = false;
  bool closing_ = false;
  bool given_up_ = false;  // the disk does not take it
  // The writer's.
  UniqueFd file_;
  std::uint64_t file_bytes_ = 0;
};

}  // namespace kvmem::cache

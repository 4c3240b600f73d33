#include "cache/history.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>
#include <span>
#include <utility>

#include "base/check.h"
#include "os/log.h"

namespace kvmem::cache {
namespace {

// Words of 64 bits, all of them. The file: magic, uid, block bytes, checksum; then entries: blocks
// in the path, time, input and output tokens, whether the tail is partial, the path, checksum.
constexpr std::uint64_t kMagic = 0x31746469686d766b;  // "kvmhidt1"
constexpr std::size_t kHeaderWords = 4;
constexpr std::size_t kEntryWords = 5;  // beside the path, the checksum included
constexpr std::uint64_t kBlocksOfEntryMax = std::uint64_t{1} << 20;
constexpr std::size_t kPendingWords = 8192;

std::uint64_t checksum(std::span<const std::uint64_t> words) {
  return XXH3_64bits(words.data(), words.size_bytes());
}

std::array<std::uint64_t, kHeaderWords> header_of(const History::Owner& owner) {
  std::array<std::uint64_t, kHeaderWords> header{kMagic, owner.uid, owner.block_bytes, 0};
  header[3] = checksum(std::span(header).first(3));
  return header;
}

bool read_words(int fd, std::span<std::uint64_t> words) {
  const auto bytes = std::as_writable_bytes(words);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::read(fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

UniqueFd open_to_read(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
}

}  // namespace

Result<History::Owner> History::owner_of(const std::string& path) {
  const UniqueFd file = open_to_read(path);
  std::array<std::uint64_t, kHeaderWords> header{};
  if (!file || !read_words(file.get(), header)) return Status(Code::kInvalid, "no history");
  const Owner owner{static_cast<std::uint32_t>(header[1]), header[2]};
  if (header != header_of(owner)) return Status(Code::kInvalid, "no history");
  return owner;
}

History::History(std::string path, Owner owner, std::uint64_t blocks_max, os::Executor& workers)
    : path_(std::move(path)),
      owner_(owner),
      bytes_max_(blocks_max * 2 * sizeof(std::uint64_t)),
      workers_(workers) {
  write_.history = this;
  write_.work = [](os::Job* self) {
    auto* job = static_cast<Write*>(self);
    job->failed = !job->history->write(job->words);
  };
  write_.done = [](os::Job* self) {
    auto* job = static_cast<Write*>(self);
    History& history = *job->history;
    history.busy_ = false;
    if (!job->failed) {
      if (history.closing_) history.flush();
      return;
    }
    os::log(os::Severity::kWarning, "%s: cannot be written: the next kvmemd will know less",
            history.path_.c_str());
    history.given_up_ = true;
  };
}

History::~History() { KV_CHECK(!busy_); }

void History::read(const std::function<void(const Entry&)>& consume) {
  for (const std::string& path : {path_ + ".old", path_}) {
    auto owner = owner_of(path);
    if (!owner.ok() || *owner != owner_) continue;
    const UniqueFd file = open_to_read(path);
    file_bytes_ = kHeaderWords * sizeof(std::uint64_t);
    if (!file || ::lseek(file.get(), static_cast<off_t>(file_bytes_), SEEK_SET) < 0) continue;
    std::vector<std::uint64_t> words(1);
    Entry entry;
    while (read_words(file.get(), std::span(words).first(1)) && words[0] <= kBlocksOfEntryMax) {
      const std::size_t blocks = words[0];
      words.resize(kEntryWords + 2 * blocks);
      if (!read_words(file.get(), std::span(words).subspan(1))) break;
      if (checksum(std::span(words).first(words.size() - 1)) != words.back()) break;
      file_bytes_ += words.size() * sizeof words[0];
      entry.time_ms = words[1];
      entry.input_tokens = static_cast<std::uint32_t>(words[2]);
      entry.output_tokens = static_cast<std::uint32_t>(words[2] >> 32);
      entry.tail_is_partial = words[3] != 0;
      entry.path.resize(blocks);
      if (blocks > 0) std::memcpy(entry.path.data(), &words[4], blocks * sizeof entry.path[0]);
      consume(entry);
    }
    if (path == path_) {
      // Gone on with, after the last entry that is right.
      file_.reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
      if (file_ && (::ftruncate(file_.get(), static_cast<off_t>(file_bytes_)) != 0 ||
                    ::lseek(file_.get(), 0, SEEK_END) < 0)) {
        file_.reset();
      }
    }
  }
}

void History::append(const Entry& entry) {
  if (given_up_ || entry.path.size() > kBlocksOfEntryMax) return;
  const std::size_t begin = pending_.size();
  pending_.push_back(entry.path.size());
  pending_.push_back(entry.time_ms);
  pending_.push_back(std::uint64_t{entry.output_tokens} << 32 | entry.input_tokens);
  pending_.push_back(entry.tail_is_partial ? 1 : 0);
  for (const auto& id : entry.path) pending_.insert(pending_.end(), id.begin(), id.end());
  pending_.push_back(checksum(std::span(pending_).subspan(begin)));
  if (pending_.size() >= kPendingWords) flush();
}

void History::flush() {
  if (busy_ || given_up_ || pending_.empty()) return;
  write_.words.clear();
  write_.words.swap(pending_);
  busy_ = true;
  workers_.execute(&write_);
}

void History::close() {
  closing_ = true;
  flush();
}

void History::remove() {
  KV_CHECK(!busy_);
  pending_.clear();
  file_.reset();
  (void)::unlink(path_.c_str());
  (void)::unlink((path_ + ".old").c_str());
}

bool History::write(const std::vector<std::uint64_t>& words) {
  if (file_ && file_bytes_ >= bytes_max_) {
    file_.reset();
    if (::rename(path_.c_str(), (path_ + ".old").c_str()) != 0) return false;
  }
  if (!file_) {
    file_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file_) return false;
    const auto header = header_of(owner_);
    if (::write(file_.get(), header.data(), sizeof header) != sizeof header) return false;
    file_bytes_ = sizeof header;
  }
  const std::size_t bytes = words.size() * sizeof words[0];
  if (::write(file_.get(), words.data(), bytes) != static_cast<ssize_t>(bytes)) return false;
  file_bytes_ += bytes;
  return true;
}

}  // namespace kvmem::cache

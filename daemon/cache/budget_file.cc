#include "cache/budget_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <utility>

#include "base/check.h"
#include "os/log.h"

namespace kvmem::cache {
namespace {

constexpr std::uint64_t kMagic = 0x3174677562766d6b;  // "kmvbugt1"

using Words = std::array<std::uint64_t, 4>;  // magic, time, bytes, checksum

Words words_of(const BudgetFile::State& state) {
  Words words{kMagic, state.wall_ms, state.saved_bytes, 0};
  words[3] = XXH3_64bits(words.data(), 3 * sizeof words[0]);
  return words;
}

}  // namespace

BudgetFile::BudgetFile(std::string path, os::Executor& workers)
    : path_(std::move(path)), workers_(workers) {
  write_.file = this;
  write_.work = [](os::Job* self) {
    auto* job = static_cast<Write*>(self);
    job->failed = !job->file->write_now(job->state);
  };
  write_.done = [](os::Job* self) {
    auto* job = static_cast<Write*>(self);
    BudgetFile& file = *job->file;
    file.busy_ = false;
    if (job->failed) {
      os::log(os::Severity::kWarning,
              "%s: cannot be written: the next kvmemd begins with a full write budget",
              file.path_.c_str());
      file.given_up_ = true;
    } else if (file.next_) {
      file.write(*std::exchange(file.next_, std::nullopt));
    }
  };
}

BudgetFile::~BudgetFile() { KV_CHECK(!busy_); }

std::optional<BudgetFile::State> BudgetFile::read() const {
  const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  Words words{};
  if (!file || ::read(file.get(), words.data(), sizeof words) != sizeof words) return std::nullopt;
  const State state{words[1], words[2]};
  if (words != words_of(state)) return std::nullopt;
  return state;
}

void BudgetFile::write(const State& state) {
  if (path_.empty() || given_up_) return;
  if (busy_) {
    next_ = state;
    return;
  }
  write_.state = state;
  busy_ = true;
  workers_.execute(&write_);
}

bool BudgetFile::write_now(const State& state) const {
  const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  const Words words = words_of(state);
  return file && ::pwrite(file.get(), words.data(), sizeof words, 0) == sizeof words;
}

}  // namespace kvmem::cache

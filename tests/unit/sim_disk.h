// A simulated disk for the page store: it completes in any order, loses what was not synced, and
// fails on purpose. Seeded; one thread.
//
// SimMedia is what lies on the platter and in the volatile cache, and outlives the daemon's lives;
// SimDisk is the device one life of the store opens; SimLoop is the event loop under both.
//
// What a crash leaves of each write that no sync covered: all, nothing, some of its sectors (torn
// at 512 or 4096 bytes), the right bytes in the wrong place, or a flipped bit. Writes to the same
// place keep their order, as a disk's cache keeps it.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "os/block_device.h"
#include "os/workers.h"

namespace kvmem::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t next() { return engine_(); }
  std::uint64_t below(std::uint64_t n) { return n == 0 ? 0 : engine_() % n; }
  bool one_in(std::uint64_t n) { return n != 0 && below(n) == 0; }

 private:
  std::mt19937_64 engine_;
};

// Each is "one in so many operations"; 0 is never.
struct SimFaults {
  std::uint64_t read_error = 0, write_error = 0, sync_error = 0, no_space = 0;
  std::uint64_t short_io = 0;
  std::uint64_t read_flip = 0, read_elsewhere = 0;
  // Of the unsynced writes at a crash.
  std::uint64_t misdirect = 0, flip = 0;
  std::uint64_t sector_bytes = 512;
};

struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t size_bytes = 0;
  bool overlaps(std::uint64_t other, std::uint64_t other_bytes) const {
    return offset < other + other_bytes && other < offset + size_bytes;
  }
};

class SimMedia {
 public:
  SimMedia(std::uint64_t seed, std::uint64_t size_bytes, bool grows)
      : random(seed), grows_(grows), stable_(size_bytes), view_(size_bytes) {}

  Random random;
  SimFaults faults;
  // What the last crash put where it did not belong. Nothing on it can be expected to be there.
  std::vector<ByteRange> damage;
  std::uint64_t injected_read_faults = 0;
  std::uint64_t failed_syncs = 0;
  std::uint64_t read_faults_left = ~0ULL;  // how many more to inject
  bool powered = true;

  std::uint64_t size_bytes() const { return view_.size(); }
  bool grows() const { return grows_; }
  std::vector<std::uint8_t>& view() { return view_; }
  // For a test that alters what lies on the disk.
  void flip_bit(std::uint64_t offset, unsigned bit) {
    view_[offset] ^= static_cast<std::uint8_t>(1U << bit);
    if (offset < stable_.size()) stable_[offset] ^= static_cast<std::uint8_t>(1U << bit);
  }

  int read(const os::BlockIo& io, std::uint64_t limit_bytes) {
    std::uint64_t from = io.offset;
    if (random.one_in(faults.read_elsewhere) && inject_read_fault()) {
      from = random.below(view_.size() / 4096 + 1) * 4096;
    }
    const std::uint64_t there = from < view_.size() ? view_.size() - from : 0;
    std::uint64_t left = std::min({io.size_bytes(), limit_bytes, there});
    const std::uint64_t moved = left;
    for (unsigned i = 0; i < io.part_count && left > 0; ++i) {
      const std::uint64_t n = std::min<std::uint64_t>(left, io.parts[i].iov_len);
      std::memcpy(io.parts[i].iov_base, view_.data() + from + (moved - left), n);
      left -= n;
    }
    if (random.one_in(faults.read_flip) && inject_read_fault()) {
      const iovec& part = io.parts[random.below(io.part_count)];
      static_cast<std::uint8_t*>(part.iov_base)[random.below(part.iov_len)] ^=
          static_cast<std::uint8_t>(1U << random.below(8));
    }
    return static_cast<int>(moved);
  }

  bool inject_read_fault() {
    if (read_faults_left == 0) return false;
    --read_faults_left;
    ++injected_read_faults;
    return true;
  }

  int write(const os::BlockIo& io, std::uint64_t limit_bytes) {
    Pending write{io.offset, gather(io), next_write_++, false};
    if (write.bytes.size() > limit_bytes) write.bytes.resize(limit_bytes);
    const int moved = static_cast<int>(write.bytes.size());
    if (!grows_ && write.offset + write.bytes.size() > view_.size()) return -ENOSPC;
    apply(view_, write.offset, write.bytes);
    pending_.push_back(std::move(write));
    return moved;
  }
  // A write that did not end well: some sectors of it.
  void write_partly(const os::BlockIo& io) {
    const Pending write{io.offset, gather(io), next_write_++, false};
    for (auto& [offset, bytes] : torn(write)) {
      apply(view_, offset, bytes);
      pending_.push_back({offset, bytes, write.number, false});
    }
  }
  void reserve(std::uint64_t end) {
    if (end > view_.size()) view_.resize(end);
  }

  // A sync that starts now covers the writes numbered below this.
  std::uint64_t mark() const { return next_write_; }
  void sync(std::uint64_t mark) {
    std::vector<Pending> rest;
    for (Pending& p : pending_) {
      if (p.number < mark && !p.poisoned) {
        apply(stable_, p.offset, p.bytes);
      } else {
        rest.push_back(std::move(p));
      }
    }
    pending_ = std::move(rest);
    if (view_.size() > stable_.size()) stable_.resize(view_.size());
  }
  // A sync that failed: of what it was to cover some is on the platter, some is gone at once, and
  // some can be read for now but will not survive, whatever a later sync says.
  void sync_failed(std::uint64_t mark) {
    ++failed_syncs;
    std::vector<Pending> rest;
    for (Pending& p : pending_) {
      const bool covered = p.number < mark && !p.poisoned;
      switch (covered ? random.below(3) : 2) {
        case 0:
          apply(stable_, p.offset, p.bytes);
          break;
        case 1:
          break;
        default:
          p.poisoned = p.poisoned || covered;
          rest.push_back(std::move(p));
      }
    }
    pending_ = std::move(rest);
    rebuild();
  }

  // The process dies: what it had completed stays with the kernel and the device. What a failed
  // sync left in doubt shows itself now: past the page cache, what reads back is what a later sync
  // keeps.
  void kill() {
    damage.clear();
    std::erase_if(pending_, [](const Pending& p) { return p.poisoned; });
    rebuild();
    powered = false;
  }
  // The host dies.
  void crash() {
    damage.clear();
    for (const Pending& p : pending_) {
      if (p.poisoned) continue;
      if (random.one_in(faults.misdirect)) {
        const std::uint64_t to = random.below(stable_.size() / faults.sector_bytes + 1);
        land(to * faults.sector_bytes, p.bytes, true);
        continue;
      }
      switch (random.below(3)) {
        case 0:
          break;
        case 1:
          land(p.offset, p.bytes, false);
          break;
        default:
          for (auto& [offset, bytes] : torn(p)) land(offset, bytes, false);
      }
      if (random.one_in(faults.flip) && p.offset < stable_.size() && !p.bytes.empty()) {
        const std::uint64_t at = p.offset + random.below(p.bytes.size());
        if (at < stable_.size()) stable_[at] ^= static_cast<std::uint8_t>(1U << random.below(8));
      }
    }
    if (grows_ && view_.size() > stable_.size() && random.one_in(2)) stable_.resize(view_.size());
    pending_.clear();
    view_ = stable_;
    powered = false;
  }
  void power_on() { powered = true; }
  // Another disk, with nothing on it.
  void replace() {
    stable_.assign(grows_ ? 0 : stable_.size(), 0);
    view_ = stable_;
    pending_.clear();
    damage.clear();
  }

 private:
  struct Pending {
    std::uint64_t offset = 0;
    std::vector<std::uint8_t> bytes;
    std::uint64_t number = 0;
    bool poisoned = false;
  };

  static std::vector<std::uint8_t> gather(const os::BlockIo& io) {
    std::vector<std::uint8_t> bytes;
    for (unsigned i = 0; i < io.part_count; ++i) {
      const auto* from = static_cast<const std::uint8_t*>(io.parts[i].iov_base);
      bytes.insert(bytes.end(), from, from + io.parts[i].iov_len);
    }
    return bytes;
  }
  static void apply(std::vector<std::uint8_t>& to, std::uint64_t offset,
                    const std::vector<std::uint8_t>& bytes) {
    if (bytes.empty()) return;
    if (offset + bytes.size() > to.size()) to.resize(offset + bytes.size());
    std::memcpy(to.data() + offset, bytes.data(), bytes.size());
  }
  std::vector<std::pair<std::uint64_t, std::vector<std::uint8_t>>> torn(const Pending& p) {
    std::vector<std::pair<std::uint64_t, std::vector<std::uint8_t>>> parts;
    // A prefix, a suffix, or any sectors.
    const std::uint64_t sectors = p.bytes.size() / faults.sector_bytes;
    const std::uint64_t cut = random.below(sectors + 1);
    const std::uint64_t how = random.below(3);
    for (std::uint64_t i = 0; i < sectors; ++i) {
      const bool keep = how == 0 ? i < cut : how == 1 ? i >= cut : random.one_in(2);
      if (!keep) continue;
      const auto* from = p.bytes.data() + i * faults.sector_bytes;
      parts.push_back({p.offset + i * faults.sector_bytes,
                       std::vector<std::uint8_t>(from, from + faults.sector_bytes)});
    }
    return parts;
  }
  void land(std::uint64_t offset, const std::vector<std::uint8_t>& bytes, bool wrong) {
    std::vector<std::uint8_t> fits = bytes;
    if (!grows_ || wrong) {
      if (offset >= stable_.size()) return;
      fits.resize(std::min<std::uint64_t>(fits.size(), stable_.size() - offset));
    }
    if (wrong) damage.push_back({offset, fits.size()});
    apply(stable_, offset, fits);
  }
  void rebuild() {
    const std::uint64_t size = view_.size();
    view_ = stable_;
    if (view_.size() < size) view_.resize(size);
    for (const Pending& p : pending_) apply(view_, p.offset, p.bytes);
  }

  const bool grows_;
  std::vector<std::uint8_t> stable_;
  std::vector<std::uint8_t> view_;
  std::vector<Pending> pending_;
  std::uint64_t next_write_ = 0;
};

// Runs device operations and executor jobs one at a time, in any order.
class SimLoop final : public os::Executor {
 public:
  explicit SimLoop(SimMedia& media) : media_(media) {}

  enum class What { kRead, kWrite, kSync, kReserve, kJob };
  struct Event {
    What what = What::kJob;
    os::BlockIo* io = nullptr;
    os::Job* job = nullptr;
    std::uint64_t argument = 0;
  };

  void execute(os::Job* job) override { events_.push_back({What::kJob, nullptr, job, 0}); }
  void add(Event event) { events_.push_back(event); }
  bool empty() const { return events_.empty(); }

  // Cut the power, or only kill the process, at the n-th event from now. 0: not planned.
  void plan_end(std::uint64_t events, bool host) {
    end_in_ = events;
    end_is_host_ = host;
  }
  void end_now(bool host) {
    end_in_ = 0;
    // What was under way may have come to pass in part.
    for (const Event& e : events_) {
      if (e.what != What::kWrite) continue;
      if (!host && media_.random.one_in(2)) {
        (void)media_.write(*e.io, ~0ULL);
      } else {
        media_.write_partly(*e.io);
      }
    }
    host ? media_.crash() : media_.kill();
  }

  bool step() {
    if (events_.empty()) return false;
    if (end_in_ > 0 && --end_in_ == 0) end_now(end_is_host_);
    const std::uint64_t pick = media_.random.below(events_.size());
    const Event e = events_[pick];
    events_[pick] = events_.back();
    events_.pop_back();
    if (e.what == What::kJob) {
      e.job->work(e.job);
      e.job->done(e.job);
    } else {
      e.io->run(e.io, perform(e), 0);
    }
    return true;
  }

 private:
  int perform(const Event& e) {
    Random& random = media_.random;
    const SimFaults& f = media_.faults;
    if (!media_.powered) return -EIO;
    const std::uint64_t size = e.io->size_bytes();
    const bool cut =
        random.one_in(f.short_io) && (e.what != What::kRead || media_.inject_read_fault());
    const std::uint64_t limit = cut ? random.below(size / 512) * 512 : size;
    switch (e.what) {
      case What::kRead:
        if (random.one_in(f.read_error) && media_.inject_read_fault()) return -EIO;
        return media_.read(*e.io, limit);
      case What::kWrite:
        if (random.one_in(f.no_space)) return -ENOSPC;
        if (random.one_in(f.write_error)) return media_.write_partly(*e.io), -EIO;
        return media_.write(*e.io, limit);
      case What::kReserve:
        if (random.one_in(f.no_space)) return -ENOSPC;
        media_.reserve(e.io->offset + e.argument);
        return 0;
      case What::kSync:
        if (random.one_in(f.sync_error)) return media_.sync_failed(e.argument), -EIO;
        media_.sync(e.argument);
        return 0;
      case What::kJob:
        break;
    }
    return -EINVAL;
  }

  SimMedia& media_;
  std::vector<Event> events_;
  std::uint64_t end_in_ = 0;
  bool end_is_host_ = false;
};

class SimDisk final : public os::BlockDevice {
 public:
  SimDisk(SimMedia& media, SimLoop& loop) : media_(media), loop_(loop), size_(media.size_bytes()) {}
  std::uint64_t size_bytes() const override { return size_; }
  bool grows() const override { return media_.grows(); }
  void read(os::BlockIo* io) override { loop_.add({SimLoop::What::kRead, io, nullptr, 0}); }
  void write(os::BlockIo* io) override { loop_.add({SimLoop::What::kWrite, io, nullptr, 0}); }
  void sync(os::BlockIo* io) override {
    io->part_count = 0;
    loop_.add({SimLoop::What::kSync, io, nullptr, media_.mark()});
  }
  void reserve(os::BlockIo* io, std::uint64_t size_bytes) override {
    io->part_count = 0;
    loop_.add({SimLoop::What::kReserve, io, nullptr, size_bytes});
  }
  Status wait() override {
    return loop_.step() ? Status{} : Status(Code::kInvalid, "nothing to wait for");
  }

 private:
  SimMedia& media_;
  SimLoop& loop_;
  const std::uint64_t size_;
};

}  // namespace kvmem::test

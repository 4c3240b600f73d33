// KvPool's pages: where their frames come from, who shares them, and how they leave.
#include <algorithm>
#include <utility>

#include "pool/pool.h"

namespace kvmem::pool {
namespace {

// Unmapped at once where there is that much: the engine's work has to end for it.
constexpr std::uint64_t kReclaimPages = 64;
constexpr std::size_t kVictimsMax = 64;

}  // namespace

template <class Wants, class Each>
Status KvPool::for_runs(std::uint32_t row, std::uint32_t first, std::uint32_t end, Wants wants,
                        Each each) {
  for (std::uint32_t plane = 0; plane < planes_; ++plane) {
    for (std::uint32_t page = first; page < end; ++page) {
      if (!wants(entry(row, plane, page))) continue;
      Run run{plane, page, 1};
      while (run.count < kRunPagesMax && page + 1 < end && wants(entry(row, plane, page + 1))) {
        ++run.count;
        ++page;
      }
      KV_TRY(each(run));
    }
  }
  return {};
}

Result<std::uint32_t> KvPool::hold(const Frame& frame) {
  std::uint32_t index = free_held_;
  if (index != 0) {
    free_held_ = held_[index].next_free;
  } else {
    index = static_cast<std::uint32_t>(held_.size());
    if (!held_.resize(held_.size() + 1)) return Status(Code::kNoMemory, "a KV pool's frames");
  }
  held_[index] = {frame, 1, 0};
  return index;
}

bool KvPool::let_go(std::uint32_t index, Frame* out) {
  Held& held = held_[index];
  if (--held.pages > 0) return false;
  *out = held.frame;
  held.next_free = free_held_;
  free_held_ = index;
  return true;
}

Frame KvPool::frame_at(std::uint32_t row, std::uint32_t plane, std::uint32_t page) {
  return held_[entry(row, plane, page)].frame;
}

void KvPool::frames_of(std::uint32_t row, const Run& run, Frame* out) {
  const LockGuard guard(lock_);
  for (std::uint32_t i = 0; i < run.count; ++i) out[i] = frame_at(row, run.plane, run.first + i);
}

bool KvPool::shared_from(std::uint32_t row, std::uint32_t first) {
  for (std::uint32_t page = first; page < rows_[row].high; ++page) {
    for (std::uint32_t plane = 0; plane < planes_; ++plane) {
      if (held_[entry(row, plane, page)].pages > 1) return true;
    }
  }
  return false;
}

bool KvPool::has_private(std::uint32_t row) {
  const Row& r = rows_[row];
  for (std::uint32_t page = std::min(r.high, pages_for(r.tokens)); page-- > 0;) {
    for (std::uint32_t plane = 0; plane < planes_; ++plane) {
      if (held_[entry(row, plane, page)].pages == 1) return true;
    }
  }
  return false;
}

Status KvPool::obtain(std::uint64_t page, std::size_t count, Means means, Frame* out) {
  for (;;) {
    const Status taken = backing_->take(page, count, out);
    if (taken.code() != Code::kNoMemory) return taken;
    Status more = reclaim(count, means);
    if (more.code() == Code::kNotFound && means == Means::kParking) more = park_oldest();
    if (!more.ok()) return more.code() == Code::kNotFound ? taken : more;
  }
}

Status KvPool::adopt(std::uint32_t row, const Run& run, const Frame* frames) {
  std::uint32_t ids[kRunPagesMax] = {};
  Status status;
  std::uint32_t held = 0;
  {
    const LockGuard guard(lock_);
    for (; held < run.count && status.ok(); held += status.ok()) {
      auto id = hold(frames[held]);
      status = id.status();
      if (id.ok()) ids[held] = *id;
    }
  }
  if (status.ok()) {
    status = backing_->map(page_of(row, run.plane, run.first), frames, run.count);
  }
  const LockGuard guard(lock_);
  if (!status.ok()) {
    Frame gone;
    for (std::uint32_t i = 0; i < held; ++i) (void)let_go(ids[i], &gone);
    return status;
  }
  for (std::uint32_t i = 0; i < run.count; ++i) entry(row, run.plane, run.first + i) = ids[i];
  rows_[row].high = std::max(rows_[row].high, run.first + run.count);
  return {};
}

Status KvPool::fill(std::uint32_t row, std::uint32_t end, Means means) {
  if (std::uint64_t{end} * planes_ > backing_->frames_max()) {
    return {Code::kNoMemory, "the pool may not have the memory that a sequence so long takes"};
  }
  std::uint32_t filled = 0;
  {
    const LockGuard guard(lock_);
    filled = pages_for(rows_[row].tokens);
  }
  return for_runs(
      row, 0, end, [](std::uint32_t id) { return id == 0; },
      [&](const Run& run) -> Status {
        // New memory never stands for what the sequence has written.
        if (run.first < filled) return {Code::kCorrupt, "pages of the sequence are not there"};
        return fill_run(row, run, means);
      });
}

Status KvPool::fill_run(std::uint32_t row, const Run& run, Means means) {
  Frame frames[kRunPagesMax];
  KV_TRY(obtain(page_of(row, run.plane, run.first), run.count, means, frames));
  const Status mapped = adopt(row, run, frames);
  if (!mapped.ok()) backing_->give_back(frames, run.count);
  return mapped;
}

Status KvPool::drop_run(std::uint32_t row, const Run& run) {
  KV_TRY(backing_->unmap(page_of(row, run.plane, run.first), run.count));
  Frame gone[kRunPagesMax];
  std::size_t count = 0;
  {
    const LockGuard guard(lock_);
    for (std::uint32_t i = 0; i < run.count; ++i) {
      std::uint32_t& id = entry(row, run.plane, run.first + i);
      count += let_go(std::exchange(id, 0), &gone[count]);
    }
  }
  backing_->give_back(gone, count);
  return {};
}

Status KvPool::drop(std::uint32_t row, std::uint32_t first) {
  std::uint32_t high = 0;
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    high = r.high;
    r.room = std::min(r.room, tokens_in(first));
  }
  const Status status = for_runs(
      row, first, high, [](std::uint32_t id) { return id != 0; },
      [&](const Run& run) { return drop_run(row, run); });
  const LockGuard guard(lock_);
  set_high(row);
  return status;
}

void KvPool::set_high(std::uint32_t row) {
  std::uint32_t& high = rows_[row].high;
  const auto is_bare = [&](std::uint32_t page) {
    for (std::uint32_t plane = 0; plane < planes_; ++plane) {
      if (entry(row, plane, page) != 0) return false;
    }
    return true;
  };
  while (high > 0 && is_bare(high - 1)) --high;
}

Status KvPool::clear(std::uint32_t row) {
  bool is_bare = false;
  {
    const LockGuard guard(lock_);
    is_bare = rows_[row].high == 0;
  }
  if (!is_bare) {
    KV_TRY(backing_->pause());
    const Status dropped = drop(row, 0);
    backing_->go_on();
    KV_TRY(dropped);
  }
  const LockGuard guard(lock_);
  rows_[row].state = State::kFree;
  rows_[row].shares = false;
  return {};
}

Status KvPool::scrub(std::uint32_t row) {
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    if (r.state != State::kClosing) return {};
    if (!shared_from(row, 0)) {  // the others have closed
      r.state = State::kFree;
      r.shares = false;
      return {};
    }
  }
  return clear(row);
}

Status KvPool::share(std::uint32_t parent, std::uint32_t child, std::uint64_t tokens,
                     void* stream) {
  const std::uint64_t bytes = tokens * token_stride_;
  const auto full = static_cast<std::uint32_t>(bytes >> page_shift_);
  const std::uint64_t part = bytes & (geometry_.page_bytes - 1);
  {
    const LockGuard guard(lock_);
    rows_[parent].shares |= full > 0;
    rows_[child].shares |= full > 0;
  }
  KV_TRY(for_runs(
      parent, 0, full, [](std::uint32_t id) { return id != 0; },
      [&](const Run& run) { return share_run(parent, child, run); }));
  for (std::uint32_t plane = 0; part != 0 && plane < planes_; ++plane) {
    KV_TRY(fill_run(child, {plane, full, 1}, Means::kParking));
    KV_TRY(backing_->copy(page_of(parent, plane, full), page_of(child, plane, full), part, stream));
  }
  return {};
}

Status KvPool::share_run(std::uint32_t parent, std::uint32_t child, const Run& run) {
  Frame frames[kRunPagesMax];
  {
    const LockGuard guard(lock_);
    for (std::uint32_t i = 0; i < run.count; ++i) {
      const std::uint32_t id = entry(parent, run.plane, run.first + i);
      frames[i] = held_[id].frame;
      ++held_[id].pages;
    }
  }
  const Status mapped = backing_->map(page_of(child, run.plane, run.first), frames, run.count);
  const LockGuard guard(lock_);
  for (std::uint32_t i = 0; i < run.count; ++i) {
    const std::uint32_t id = entry(parent, run.plane, run.first + i);
    if (mapped.ok()) {
      entry(child, run.plane, run.first + i) = id;
    } else {
      --held_[id].pages;
    }
  }
  if (mapped.ok()) rows_[child].high = std::max(rows_[child].high, run.first + run.count);
  return mapped;
}

Status KvPool::unshare(std::uint32_t row, std::uint64_t tokens) {
  const std::uint64_t bytes = tokens * token_stride_;
  const auto first = static_cast<std::uint32_t>(bytes >> page_shift_);
  const std::uint64_t part = bytes & (geometry_.page_bytes - 1);
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    if (!r.shares || !shared_from(row, first)) return {};
    r.room = std::min(r.room, tokens_in(first));
  }
  Array<Frame> copies;
  if (!copies.resize(part != 0 ? planes_ : 0)) return {Code::kNoMemory, "a KV pool's copies"};
  std::uint32_t taken = 0;
  Status status;
  for (; taken < copies.size() && status.ok(); taken += status.ok()) {
    status = obtain(page_of(row, taken, first), 1, Means::kParking, &copies[taken]);
  }
  std::uint32_t used = 0;
  if (status.ok()) status = backing_->pause();
  if (status.ok()) {
    // Whole pages: where a later one fails the sequence is as it was.
    for (; used < taken && status.ok(); used += status.ok()) {
      status = replace(row, used, first, copies[used]);
    }
    // What could not be unmapped would be written though it is another's.
    if (status.ok() && !drop(row, part != 0 ? first + 1 : first).ok()) {
      status = {Code::kCorrupt, "pages of a sequence could not be unmapped: close it"};
    }
    backing_->go_on();
  }
  backing_->give_back(copies.data() + used, taken - used);
  return status;
}

Status KvPool::replace(std::uint32_t row, std::uint32_t plane, std::uint32_t page,
                       const Frame& copy) {
  Frame before;
  std::uint32_t id = 0;
  {
    const LockGuard guard(lock_);
    KV_ASSIGN_OR_RETURN(id, hold(copy));
    before = frame_at(row, plane, page);
  }
  const Status replaced = backing_->replace(page_of(row, plane, page), before, copy);
  Frame gone;
  bool is_gone = false;
  {
    const LockGuard guard(lock_);
    if (!replaced.ok()) {
      (void)let_go(id, &gone);
      return replaced;
    }
    is_gone = let_go(std::exchange(entry(row, plane, page), id), &gone);
  }
  if (is_gone) backing_->give_back(&gone, 1);
  return {};
}

Status KvPool::reclaim(std::uint64_t wanted, Means means) {
  struct Victim {
    std::uint32_t row, first;
  } victims[kVictimsMax];
  std::size_t count = 0;
  std::uint64_t pages = 0;
  {
    const LockGuard guard(lock_);
    // What closed sequences have left; if that is nothing, and it is needed, what is ahead of
    // others.
    for (const bool is_open : {false, true}) {
      if (is_open && means == Means::kSpare) break;
      for (std::uint32_t row = 0; row < rows_.size(); ++row) {
        if (count == kVictimsMax || pages >= std::max(wanted, kReclaimPages)) break;
        Row& r = rows_[row];
        const std::uint32_t first = pages_for(std::max(r.tokens, r.goal));
        if ((r.state == State::kOpen) != is_open || r.busy || r.parked != nullptr ||
            r.high <= first) {
          continue;
        }
        r.busy = true;
        r.room = std::min(r.room, tokens_in(first));
        victims[count++] = {row, first};
        pages += std::uint64_t{planes_} * (r.high - first);
      }
      if (count > 0) break;
    }
  }
  if (count == 0) return {Code::kNotFound, "nothing is spare"};
  Status status = backing_->pause();
  if (status.ok()) {
    for (std::size_t i = 0; i < count; ++i) {
      const Status dropped = drop(victims[i].row, victims[i].first);
      if (status.ok()) status = dropped;
    }
    backing_->go_on();
  }
  for (std::size_t i = 0; i < count; ++i) {
    // (Nothing of another's is left in one that was closing.)
    if (status.ok()) (void)scrub(victims[i].row);
    unclaim(victims[i].row);
  }
  const LockGuard guard(lock_);
  if (status.ok()) stats_.reclaimed_pages += pages;
  return status;
}

Status KvPool::park_oldest() {
  constexpr Status kNobody(Code::kNotFound, "no sequence can be parked");
  if (backing_->is_paged()) return kNobody;
  Row* oldest = nullptr;
  std::uint32_t row = 0;
  {
    const LockGuard guard(lock_);
    for (Row& r : rows_) {
      if (r.state != State::kOpen || r.busy || r.pinned || r.parked != nullptr || r.step >= step_ ||
          (oldest != nullptr && r.step >= oldest->step)) {
        continue;
      }
      if (has_private(static_cast<std::uint32_t>(&r - rows_.data()))) oldest = &r;
    }
    if (oldest == nullptr) return kNobody;
    oldest->busy = true;
    row = static_cast<std::uint32_t>(oldest - rows_.data());
  }
  Status stored = store(row);
  {
    const LockGuard guard(lock_);
    if (stored.ok() && rows_[row].parked == nullptr) stored = kNobody;
  }
  unclaim(row);
  return stored;
}

Status KvPool::store(std::uint32_t row) {
  if (backing_->is_paged()) {
    advise(row, Heat::kCold);
    return {};
  }
  std::uint32_t end = 0;
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    if (r.parked != nullptr) return {};
    end = pages_for(r.tokens);
    r.room = 0;
  }
  void* room = heap_room<Parked>();
  if (room == nullptr) return {Code::kNoMemory, "parking a sequence"};
  Owned<Parked> parked(::new (room) Parked);
  Array<Frame> frames;
  KV_TRY(for_runs(
      row, 0, end,
      [&](std::uint32_t id) {
        const LockGuard guard(lock_);
        return held_[id].pages == 1;
      },
      [&](const Run& run) -> Status {
        if (!parked->runs.resize(parked->runs.size() + 1) ||
            !frames.resize(frames.size() + run.count)) {
          return {Code::kNoMemory, "parking a sequence"};
        }
        parked->runs[parked->runs.size() - 1] = run;
        frames_of(row, run, frames.end() - run.count);
        return {};
      }));
  if (frames.empty()) return {};
  KV_TRY(backing_->pause());
  Status status = backing_->store(frames.data(), frames.size(), &parked->parcel);
  if (status.ok()) {
    // A page that cannot be unmapped stays as it is, and its copy is not read.
    for (const Run& run : parked->runs) {
      const Status dropped = drop_run(row, run);
      if (status.ok()) status = dropped;
    }
    (void)drop(row, end);
    const LockGuard guard(lock_);
    stats_.parked_pages += frames.size();
    rows_[row].parked = parked.release();
  }
  backing_->go_on();
  return status;
}

template <class Each>
Status KvPool::for_absent(std::uint32_t row, Parked& parked, Each each) {
  std::size_t offset = 0;
  for (const Run& run : parked.runs) {
    for (std::uint32_t i = 0; i < run.count; ++i) {
      if (entry(row, run.plane, run.first + i) != 0) continue;
      const std::uint32_t begin = i;
      while (i + 1 < run.count && entry(row, run.plane, run.first + i + 1) == 0) ++i;
      KV_TRY(each(Run{run.plane, run.first + begin, i + 1 - begin}, offset + begin));
    }
    offset += run.count;
  }
  return {};
}

Status KvPool::restore(std::uint32_t row, Means means) {
  Parked* parked = nullptr;
  {
    const LockGuard guard(lock_);
    parked = rows_[row].parked;
    if (parked == nullptr) return {};
  }
  // All of them or none: two sequences that come back must not wait for each other's.
  Array<Frame> frames;
  std::size_t used = 0;
  Status status = for_absent(row, *parked, [&](const Run& run, std::size_t) -> Status {
    const std::size_t before = frames.size();
    if (!frames.resize(before + run.count)) return {Code::kNoMemory, "resuming a sequence"};
    const Status taken =
        obtain(page_of(row, run.plane, run.first), run.count, means, frames.data() + before);
    if (!taken.ok()) frames.shrink(before);
    return taken;
  });
  if (status.ok()) {
    status = for_absent(row, *parked, [&](const Run& run, std::size_t offset) -> Status {
      KV_TRY(backing_->restore(parked->parcel, offset, frames.data() + used, run.count));
      KV_TRY(adopt(row, run, frames.data() + used));
      used += run.count;
      return {};
    });
  }
  backing_->give_back(frames.data() + used, frames.size() - used);
  {
    const LockGuard guard(lock_);
    stats_.resumed_pages += used;
  }
  if (status.ok()) drop_parcel(row);
  return status;
}

void KvPool::drop_parcel(std::uint32_t row) {
  Owned<Parked> parked;
  {
    const LockGuard guard(lock_);
    parked.reset(std::exchange(rows_[row].parked, nullptr));
  }
  if (parked != nullptr) backing_->drop(parked->parcel);
}

void KvPool::advise(std::uint32_t row, Heat heat) {
  if (!backing_->is_paged()) return;
  std::uint32_t end = 0;
  {
    const LockGuard guard(lock_);
    end = pages_for(rows_[row].tokens);
    rows_[row].is_cold = heat == Heat::kCold;
  }
  (void)for_runs(
      row, 0, end,
      [&](std::uint32_t id) {
        const LockGuard guard(lock_);
        return heat == Heat::kCold ? held_[id].pages == 1 : held_[id].pages > 0;
      },
      [&](const Run& run) -> Status {
        Frame frames[kRunPagesMax];
        frames_of(row, run, frames);
        backing_->advise(frames, run.count, heat);
        return {};
      });
}

}  // namespace kvmem::pool

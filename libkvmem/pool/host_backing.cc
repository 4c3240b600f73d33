#include "pool/host_backing.h"

#include <errno.h>
#include <string.h>

#include <algorithm>

#include "region/host.h"
#include "wire/protocol.h"

namespace kvmem::pool {
namespace {

// Calls run(first, count) for the longest stretches of frames that follow each other.
template <class Run>
void for_stretches(const Frame* frames, std::size_t count, Run run) {
  for (std::size_t i = 0; i < count;) {
    std::size_t end = i + 1;
    while (end < count && frames[end].memory == frames[end - 1].memory + 1) ++end;
    run(i, end - i);
    i = end;
  }
}

}  // namespace

int HostBacking::create(std::uint64_t pages, std::uint64_t frames_max, const char* tag,
                        Owned<HostBacking>* out) {
  void* memory = nullptr;
  if (const int error = host::create(pages << kPageShift, frames_max << kPageShift, tag, &memory);
      error != 0) {
    return error;
  }
  // A child of fork() has no pool, and its sequences would not be there in their order.
  const auto at = reinterpret_cast<std::uintptr_t>(memory);
  (void)host::advise(at, pages << kPageShift, MADV_DONTFORK);
  void* room = heap_room<HostBacking>();
  if (room == nullptr) {
    (void)host::release(memory);
    return -ENOMEM;
  }
  Owned<HostBacking> made(::new (room) HostBacking(at, pages, frames_max));
  {
    const LockGuard guard(made->lock_);
    if (!made->is_taken_.resize(pages) || !made->is_laid_.resize(pages)) return -ENOMEM;
  }
  *out = std::move(made);
  return 0;
}

HostBacking::~HostBacking() { (void)host::release(reinterpret_cast<void*>(address_)); }

std::uint64_t HostBacking::available() const {
  const LockGuard guard(lock_);
  return frames_max_ - taken_;
}

// There are at least as many pages as frames, and a page has one frame at most: one is free.
Status HostBacking::take(std::uint64_t page, std::size_t count, Frame* out) {
  drop_again();
  const LockGuard guard(lock_);
  if (count > frames_max_ - taken_) return {Code::kNoMemory, "frames of a KV pool"};
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t frame = page + i;
    while (is_taken_[frame] != 0) {
      frame = next_;
      next_ = next_ == 0 ? pages_ - 1 : next_ - 1;
    }
    is_taken_[frame] = 1;
    ++taken_;
    out[i] = {frame, 0};
  }
  return {};
}

// What the daemon could not be told of (it is away) stays taken: it counts it as used.
void HostBacking::give_back(const Frame* frames, std::size_t count) {
  for_stretches(frames, count, [&](std::size_t first, std::size_t length) {
    const std::uint64_t frame = frames[first].memory;
    const bool is_dropped = host::drop_pages(at(frame), length << kPageShift) == 0;
    const LockGuard guard(lock_);
    if (is_dropped) {
      std::fill_n(&is_taken_[frame], length, 0);
      taken_ -= length;
    } else if (undropped_.resize(undropped_.size() + length)) {
      std::copy_n(frames + first, length, undropped_.end() - length);
    }
  });
}

void HostBacking::drop_again() {
  Array<Frame> frames;
  {
    const LockGuard guard(lock_);
    frames.swap(undropped_);
  }
  give_back(frames.data(), frames.size());
}

void HostBacking::set_laid(std::uint64_t page, std::size_t count, std::uint8_t is) {
  const LockGuard guard(lock_);
  std::fill_n(&is_laid_[page], count, is);
}

Status HostBacking::lay(std::uint64_t page, std::uint64_t frame, std::size_t count) {
  // From now on, until its own lies there for certain.
  if (page != frame) set_laid(page, count, 1);
  const int error = host::alias(at(page), count << kPageShift, at(frame));
  if (error == 0) {
    if (page == frame) set_laid(page, count, 0);
    return {};
  }
  const Code code = error == -ENOSPC     ? Code::kNoMemory
                    : error == -ENOTCONN ? Code::kPeerGone
                                         : Code::kErrno;
  return {code, "pages of a sequence could not be laid at its addresses", -error};
}

Status HostBacking::map(std::uint64_t page, const Frame* frames, std::size_t count) {
  Status status;
  std::size_t laid = 0;
  for_stretches(frames, count, [&](std::size_t first, std::size_t length) {
    if (!status.ok()) return;
    if (frames[first].memory != page + first) {
      status = lay(page + first, frames[first].memory, length);
    } else {
      status = unmap(page + first, length);  // nothing, unless that failed before
    }
    if (status.ok()) laid = first + length;
  });
  if (!status.ok()) (void)unmap(page, laid);
  return status;
}

void HostBacking::populate(std::uint64_t page, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    (void)*reinterpret_cast<const volatile unsigned char*>(at(page + i));
  }
}

Status HostBacking::copy(std::uint64_t from, std::uint64_t to, std::size_t size_bytes,
                         void* /*stream*/) {
  memcpy(reinterpret_cast<void*>(at(to)), reinterpret_cast<const void*>(at(from)), size_bytes);
  return {};
}

Status HostBacking::unmap(std::uint64_t page, std::size_t count) {
  for (const std::uint64_t end = page + count; page < end;) {
    std::uint64_t run = 0;
    {
      const LockGuard guard(lock_);
      while (page + run < end && is_laid_[page + run] != 0) ++run;
    }
    if (run > 0) KV_TRY(lay(page, page, run));
    page += run + 1;
  }
  return {};
}

Status HostBacking::replace(std::uint64_t page, const Frame& before, const Frame& copy) {
  Array<unsigned char> bytes;
  if (!bytes.resize(kPageBytes)) return {Code::kNoMemory, "a copy of a shared page"};
  memcpy(bytes.data(), reinterpret_cast<const void*>(at(page)), kPageBytes);
  if (const Status laid = lay(page, copy.memory, 1); !laid.ok()) {
    if (lay(page, before.memory, 1).ok()) return laid;
    return {Code::kCorrupt, "a page could be laid neither here nor there"};
  }
  memcpy(reinterpret_cast<void*>(at(page)), bytes.data(), kPageBytes);
  return {};
}

void HostBacking::advise(const Frame* frames, std::size_t count, Heat heat) {
  for_stretches(frames, count, [&](std::size_t first, std::size_t length) {
    (void)host::advise_pages(at(frames[first].memory), length << kPageShift,
                             heat == Heat::kCold ? wire::Advice::kCold : wire::Advice::kPrefetch);
  });
}

}  // namespace kvmem::pool

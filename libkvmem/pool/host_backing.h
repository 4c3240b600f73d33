// HostBacking: a KV pool's pages in one host region, which the daemon pages.
//
// A frame is a page of the region, named by its number: where it lies in the beginning. As long as
// no sequences share pages each page has its own frame and nothing is asked of the kernel; a frame
// that is another page's is made to lie there too (host::alias).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/page.h"
#include "base/status.h"
#include "client/lock.h"
#include "pool/backing.h"

namespace kvmem::pool {

class HostBacking final : public Backing {
 public:
  // 0, or -errno as kvmem_region_create().
  static int create(std::uint64_t pages, std::uint64_t frames_max, const char* tag,
                    Owned<HostBacking>* out);
  ~HostBacking() override;
  HostBacking(const HostBacking&) = delete;
  HostBacking& operator=(const HostBacking&) = delete;

  std::uint64_t address() const override { return address_; }
  std::size_t page_bytes() const override { return kPageBytes; }
  std::uint64_t frames_max() const override { return frames_max_; }
  std::uint64_t available() const override;
  // 256 MiB of what is needed no more, and would be written out for nothing.
  std::uint64_t spare_frames_max() const override { return 128; }

  Status take(std::uint64_t page, std::size_t count, Frame* out) override;
  void give_back(const Frame* frames, std::size_t count) override;
  Status map(std::uint64_t page, const Frame* frames, std::size_t count) override;
  void populate(std::uint64_t page, std::size_t count) override;
  Status copy(std::uint64_t from, std::uint64_t to, std::size_t size_bytes, void* stream) override;
  // The processor's page tables may change at any time.
  Status pause() override { return {}; }
  void go_on() override {}
  Status unmap(std::uint64_t page, std::size_t count) override;
  Status replace(std::uint64_t page, const Frame& before, const Frame& copy) override;
  bool is_paged() const override { return true; }
  void advise(const Frame* frames, std::size_t count, Heat heat) override;
  Status store(const Frame*, std::size_t, Parcel*) override { return kPaged; }
  Status restore(const Parcel&, std::size_t, const Frame*, std::size_t) override { return kPaged; }
  void drop(Parcel&) override {}

 private:
  static constexpr Status kPaged{Code::kUnsupported, "the daemon pages this"};

  HostBacking(std::uint64_t address, std::uint64_t pages, std::uint64_t frames_max)
      : address_(address), pages_(pages), frames_max_(frames_max), next_(pages - 1) {}
  std::uint64_t at(std::uint64_t page) const { return address_ + (page << kPageShift); }
  void drop_again() EXCLUDES(lock_);
  void set_laid(std::uint64_t page, std::size_t count, std::uint8_t is) EXCLUDES(lock_);
  Status lay(std::uint64_t page, std::uint64_t frame, std::size_t count) EXCLUDES(lock_);

  const std::uint64_t address_;
  const std::uint64_t pages_;
  const std::uint64_t frames_max_;

  mutable Lock lock_;
  Array<std::uint8_t> is_taken_ GUARDED_BY(lock_);  // of each frame
  Array<std::uint8_t> is_laid_ GUARDED_BY(lock_);   // of each page: what lies there is another's
  std::uint64_t taken_ GUARDED_BY(lock_) = 0;
  Array<Frame> undropped_ GUARDED_BY(lock_);
  std::uint64_t next_ GUARDED_BY(lock_);  // where the search for a free frame goes on, downwards:
                                          // the first rows are used first
};

}  // namespace kvmem::pool

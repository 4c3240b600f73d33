// Backing: where the pages of a KV pool get their memory, one implementation for each kind of it.
//
// A page is a place in the pool's addresses, counted from their start; a frame is the memory of one
// page. A frame may be behind several pages at once.
//
// REQUIRES: one thread at a time edits a page. Frames are taken and given back by any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/heap.h"
#include "base/status.h"

namespace kvmem::pool {

struct Frame {
  std::uint64_t memory = 0;
  std::uint64_t home = 0;  // an address of its own, if it has one
};

// What frames held, somewhere else.
struct Parcel {
  unsigned char* bytes = nullptr;
  std::size_t size_bytes = 0;
  Array<std::uint64_t> sums;  // of each frame
};

enum class Heat { kCold, kWanted };

// Frames that one call is about, at most.
inline constexpr std::size_t kRunMax = 64;

class Backing {
 public:
  Backing() = default;
  virtual ~Backing() = default;
  Backing(const Backing&) = delete;
  Backing& operator=(const Backing&) = delete;

  virtual std::uint64_t address() const = 0;  // of page 0
  virtual std::size_t page_bytes() const = 0;
  // Frames that there can ever be, and that take() could have had just now.
  virtual std::uint64_t frames_max() const = 0;
  virtual std::uint64_t available() const = 0;
  // Frames that were made while somebody waited in take(), since the start.
  virtual std::uint64_t created_late() const { return 0; }
  // So many frames are going to be taken soon.
  virtual void expect(std::uint64_t /*frames*/) {}
  // Frames that closed sequences may keep; what is more is unmapped in the background.
  virtual std::uint64_t spare_frames_max() const { return UINT64_MAX; }

  // Frames for pages [page, page + count), or none of them and kNoMemory.
  virtual Status take(std::uint64_t page, std::size_t count, Frame* out) = 0;
  // REQUIRES: they are behind no page.
  virtual void give_back(const Frame* frames, std::size_t count) = 0;

  // All or none. REQUIRES: nothing is behind these pages, and the engine does not touch them yet.
  virtual Status map(std::uint64_t page, const Frame* frames, std::size_t count) = 0;
  // The engine finds them without a fault.
  virtual void populate(std::uint64_t /*page*/, std::size_t /*count*/) {}
  // What the first bytes of one page are, to another; in the order of the engine's `stream`, so
  // that it need not be done on return.
  virtual Status copy(std::uint64_t from, std::uint64_t to, std::size_t size_bytes,
                      void* stream) = 0;

  // Ok: all work that the engine had started is done, and none begins until go_on() that could
  // touch what is edited meanwhile. kBusy: try later.
  virtual Status pause() = 0;
  virtual void go_on() = 0;
  // REQUIRES of the following: paused.
  virtual Status unmap(std::uint64_t page, std::size_t count) = 0;
  // `copy` behind the page instead of `before`, with the same bytes. On error it is as it was.
  virtual Status replace(std::uint64_t page, const Frame& before, const Frame& copy) = 0;

  // Whether the daemon moves these pages by itself: then it is advised, and nothing is stored or
  // restored here.
  virtual bool is_paged() const = 0;
  virtual void advise(const Frame* /*frames*/, std::size_t /*count*/, Heat /*heat*/) {}
  // What is in the frames into host memory. REQUIRES: paused.
  virtual Status store(const Frame* frames, std::size_t count, Parcel* out) = 0;
  // And back, from the parcel's frame `first` on. kCorrupt: it is not what was stored.
  virtual Status restore(const Parcel& parcel, std::size_t first, const Frame* frames,
                         std::size_t count) = 0;
  virtual void drop(Parcel& parcel) = 0;
};

}  // namespace kvmem::pool

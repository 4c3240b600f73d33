// ResidencyTable: the daemon's side of wire/residency.h. One writer (the loop), any readers.
//
// Lives in a memfd of which the engine holds a read-only descriptor, so that a restarted daemon
// finds every page again. 8 bytes a page.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/page.h"
#include "base/status.h"
#include "base/unique_handle.h"
#include "os/memory.h"
#include "wire/residency.h"

namespace kvmem::residency {

using wire::PageState;
using wire::Residency;

class ResidencyTable {
 public:
  ResidencyTable() = default;
  static Result<ResidencyTable> create(std::uint64_t region_id, std::uint32_t page_count,
                                       os::MemoryKind kind, PageState initial);
  // Takes over a table that an engine kept. Every word is checked: kInvalid names what does not
  // fit. Transitional states are settled by the rules of wire/residency.h.
  static Result<ResidencyTable> adopt(UniqueFd fd, std::uint64_t region_id,
                                      std::uint32_t page_count, std::uint32_t owner_uid);

  std::uint32_t page_count() const { return page_count_; }
  // Pages that are not fresh.
  std::uint32_t used_count() const { return used_count_; }
  os::MemoryKind kind() const;

  Residency read(std::uint32_t page) const {
    KV_CHECK(page < page_count_);
    return Residency::unpack(words()[page].load(std::memory_order_relaxed));
  }
  void publish(std::uint32_t page, Residency entry) {
    used_count_ += (entry.state != PageState::kFresh) - (read(page).state != PageState::kFresh);
    words()[page].store(entry.pack(),
                        std::memory_order_release);  // pairs with the engine's acquire
  }

  // For the engine; cannot be written through.
  Result<UniqueFd> read_only_fd() const;

 private:
  wire::ResidencyHeader* header() const {
    return static_cast<wire::ResidencyHeader*>(mapping_.get().address);
  }
  wire::ResidencyWord* words() const {
    return reinterpret_cast<wire::ResidencyWord*>(header() + 1);
  }

  UniqueFd fd_;
  UniqueMapping mapping_;
  std::uint32_t page_count_ = 0;
  std::uint32_t used_count_ = 0;
};

}  // namespace kvmem::residency

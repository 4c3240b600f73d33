// The agent's side of host regions: the table of regions and what is done to them. Agent thread
// only, except where a comment says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/agent.h"
#include "region/arena.h"
#include "wire/protocol.h"
#include "wire/residency.h"

namespace kvmem {

// A region in use. Constant after creation but for the counts; engine threads may read the fields
// of a region they own (a pointer to it that is not freed yet).
struct Region {
  std::uint64_t id = 0;
  std::uint64_t begin = 0;
  std::uint64_t page_count = 0;
  std::uint64_t size_bytes = 0;  // asked for; heap: what realloc made of it
  std::uint64_t first_page = 0;  // of the mapping within the daemon's region
  std::uint64_t origin_offset = 0;
  std::uint64_t bytes_max = 0;  // that may be written at a time; 0: all
  std::uint64_t managed_pages = 0;
  std::uint64_t live_pages = 0;  // managed or plain; 0: the entry is free
  std::uint64_t shadow = 0;      // origin: an untouched mapping of the file itself, for give-back
  wire::ResidencyHeader* residency = nullptr;
  std::uint64_t residency_bytes = 0;
  int memfd = -1;
  int aside = -1;  // memfd of the pages that huge ones could not be had for; most regions have none
  int residency_fd = -1;
  int file = -1;
  // Pages of the region that lie at addresses of others, by address; null: none ever did.
  struct Alias {
    std::uint64_t page, target, page_count;
  }* aliases = nullptr;
  std::uint32_t alias_count = 0;
  wire::RegionKind kind = wire::RegionKind::kAnonymous;
  bool is_heap = false;
  std::uint32_t next_free = 0;

  std::uint64_t end() const { return begin + (page_count << kPageShift); }
  // End of what the engine may use; the rest of the last page is slack.
  std::uint64_t engine_end() const { return begin + align_up(size_bytes, kOsPageBytes); }
};

namespace table {

// Bounded by this, by descriptors (three or four a region in the agent's own table) and by
// vm.max_map_count; beyond any of them allocations pass through.
inline constexpr std::uint32_t kRegionsMax = 65535;
inline constexpr std::uint32_t kAliasesMax = 16384;  // of a region

// Before the first call.
void install();

// A request of an engine thread, carried out by serve(). On -EAGAIN the caller brings
// [touch, touch + touch_bytes) back by touching it and asks again: the agent must not.
struct Op {
  enum class Kind {
    kCreate,
    kRelease,
    kUnmap,
    kProtect,
    kAdvise,
    kLock,
    kUnlock,
    kMakePlain,
    kClaim,
    kMoved,
    kForkBegin,
    kForkEnd,
    kForkChild,
    kAlias,      // pages at `offset` of the region at [address, address + size_bytes)
    kDropPages,  // pages of the region that lie at the range unless others do: zeroes again
    kAdviseDaemon,
    kStats,
    kResidency,
  };
  Kind kind;
  std::uint64_t address = 0;
  std::uint64_t size_bytes = 0;
  int value = 0;  // prot, advice, flags; kForkEnd: negative when there is no child

  // kCreate
  bool is_heap = false;
  const char* tag = nullptr;
  std::uint64_t bytes_max = 0;
  std::uint64_t shadow = 0;
  std::uint64_t offset = 0;
  std::uint64_t device = 0, inode = 0;  // of the file
  int fd = -1, fd_tid = 0;              // the engine's descriptor, and whose

  std::uint64_t touch = 0, touch_bytes = 0;
  struct Range {
    std::uint64_t begin = 0, end = 0;
  } zero[2];  // the caller must zero these
  // Private memory for the pages of [at, end) that become plain, the first of them at `target`. It
  // outlives a fetch: pages of one piece of memory are one mapping again where they end up.
  struct Copies {
    std::uint64_t at = 0, end = 0, target = 0;
  } copies;
  std::uint64_t token = 0;
  void* output = nullptr;
};
// An AgentCall: the result is Op's. `op` is an Op*.
int serve(void* op);
// An operation that is not asked again after -EAGAIN.
void give_up(Op& op);

// A session with the daemon, if there is none. 0, or -ENOTCONN; says nothing of it.
int connect_quietly();

// Any thread that owns the region.
Region* region_at(std::uint64_t address);

struct Counts {
  std::uint64_t regions, managed_bytes, plain_bytes;
  std::uint64_t pages[16];  // by wire::PageState
  bool is_connected;
};

// In a child of fork, its only thread: takes over the parent's tables. `close_descriptors`: the
// child has the agent's too. True: anonymous regions are to be claimed from the daemon.
bool enter_child(bool close_descriptors);
// As enter_child: regions that cannot be claimed fail loudly on access.
void give_up_in_child();

}  // namespace table
}  // namespace kvmem

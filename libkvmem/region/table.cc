#include "region/table.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <new>

#include "client/notice.h"
#include "client/settings.h"
#include "client/userfault.h"
#include "region/host.h"
#ifdef KVMEM_WITH_CUDA
#include "region/device_keeper.h"
#include "region/device_ledger.h"
#endif

namespace kvmem::table {

namespace {

using wire::PageState;

// Between attempts to find a daemon. Each may hold an allocation up for as long as a daemon that
// does not answer is waited for.
constexpr std::uint64_t kRetryMinNs = 1'000'000'000;
constexpr std::uint64_t kRetryMaxNs = 60'000'000'000;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

constinit Region* regions = nullptr;  // [1, kRegionsMax]
constinit std::uint32_t region_high = 0;
constinit std::uint32_t region_free = 0;
constinit std::uint64_t retry_at_ns = 0;
constinit std::uint64_t retry_ns = kRetryMinNs;
constinit std::uint64_t fork_token = 0;

std::uint64_t bytes(std::uint64_t pages) { return pages << kPageShift; }
std::uint32_t index_of(const Region& r) { return static_cast<std::uint32_t>(&r - regions); }
std::uint64_t page_of(const Region& r, std::uint64_t address) {
  return (address - r.begin) >> kPageShift;
}

Region* new_region() {
  if (regions == nullptr) {
    const long at = sys::mmap(0, (kRegionsMax + 1) * sizeof(Region), kReadWrite,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sys::is_error(at)) return nullptr;
    regions = reinterpret_cast<Region*>(at);
  }
  std::uint32_t index = region_free;
  if (index != 0) {
    region_free = regions[index].next_free;
  } else if (region_high < kRegionsMax) {
    index = ++region_high;
  } else {
    return nullptr;
  }
  return new (&regions[index]) Region;
}

constexpr std::uint64_t kAliasBytes = align_up(kAliasesMax * sizeof(Region::Alias), kOsPageBytes);

void free_region(Region& r) {
  if (r.aliases != nullptr) sys::munmap(reinterpret_cast<std::uintptr_t>(r.aliases), kAliasBytes);
  r = Region{};
  r.next_free = region_free;
  region_free = index_of(r);
}

// REQUIRES: the region is attached.
std::uint64_t residency_word(const Region& r, std::uint64_t page) {
  const auto* words = reinterpret_cast<const wire::ResidencyWord*>(r.residency + 1);
  return words[r.first_page + page].load(std::memory_order_acquire);
}
PageState state_of(const Region& r, std::uint64_t page) {
  return wire::Residency::unpack(residency_word(r, page)).state;
}
// Never written: reads as zeroes. A forked child's fresh page may still equal its parent's.
bool is_zero(wire::Residency entry) {
  return entry.state == PageState::kFresh && (entry.flags & wire::Residency::kInherited) == 0;
}
// Where the page lies when it is in memory. Pages move aside only when this thread asks for it.
int memfd_of(const Region& r, std::uint64_t page) {
  if (r.aside < 0) return r.memfd;
  const auto flags = wire::Residency::unpack(residency_word(r, page)).flags;
  return (flags & wire::Residency::kAside) != 0 ? r.aside : r.memfd;
}
bool is_in_memfd(wire::Residency entry) {
  return entry.state == PageState::kResident || entry.state == PageState::kWriting;
}

void close_fd(int& fd) {
  if (fd >= 0) sys::close(fd);
  fd = -1;
}

// --- requests ---

int ask_range(wire::Op what, const Region& r, std::uint64_t page, std::uint64_t pages,
              wire::Advice advice = wire::Advice::kNormal) {
  if (r.id == 0) return -ENOENT;  // the daemon did not take it back
  wire::Request request;
  request.op = what;
  request.region_id = r.id;
  request.first_page = r.first_page + page;
  request.page_count = pages;
  request.address = r.begin;  // tells one mapping of a file from another
  request.advice = advice;
  wire::Reply reply;
  return session().request(request, nullptr, 0, &reply, nullptr);
}

// Nothing of the region is managed any more: the daemon forgets it. Its reply means that it has
// no operation on the range under way.
void detach(Region& r) {
  if (r.id != 0) {
    wire::Request request;
    request.op = wire::Op::kRegionDestroy;
    request.region_id = r.id;
    request.address = r.begin;
    wire::Reply reply;
    // Interrupted: the region is not resumed, which destroys it too.
    (void)session().request(request, nullptr, 0, &reply, nullptr);
  }
  r.id = 0;
  if (r.residency != nullptr) {
    sys::munmap(reinterpret_cast<std::uintptr_t>(r.residency), r.residency_bytes);
  }
  r.residency = nullptr;
  close_fd(r.memfd);
  close_fd(r.aside);
  close_fd(r.residency_fd);
  close_fd(r.file);
  for (std::uint64_t at = r.begin; at < r.end(); at += kPageBytes) {
    const PageTag tag = arena::tag(at);
    if (tag.kind == PageKind::kHole && tag.region == index_of(r)) arena::set_tags(at, 1, {});
  }
}

// The tag of a page that the engine gave up. As long as the daemon counts it as a region's, no
// other region may be made there.
PageTag vacated(std::uint64_t address, std::uint32_t region) {
  PageTag tag;
  const Region& r = regions[region];
  if (region != 0 && r.id != 0 && address >= r.begin && address < r.end()) {
    tag.kind = PageKind::kHole;
    tag.region = region;
  }
  return tag;
}

// --- spans of equal tags ---

template <class Function>
int for_spans(std::uint64_t begin, std::uint64_t end, Function function) {
  std::uint64_t at = align_down(begin, kPageBytes);
  while (at < end) {
    const PageTag tag = arena::tag(at);
    std::uint64_t pages = 1;
    while (at + bytes(pages) < end && arena::tag(at + bytes(pages)) == tag) ++pages;
    if (const int error = function(tag, at, pages); error != 0) return error;
    at += bytes(pages);
  }
  return 0;
}

// [begin, end) covers all of the page that the engine may use.
bool is_covered(const PageTag& tag, std::uint64_t page, std::uint64_t begin, std::uint64_t end) {
  if (begin > page) return false;
  std::uint64_t page_end = page + kPageBytes;
  if (tag.kind != PageKind::kFixed && tag.region != 0)
    page_end = std::min(page_end, regions[tag.region].engine_end());
  return end >= page_end;
}

void retag(Region& r, std::uint64_t address, std::uint64_t pages, PageKind kind) {
  PageTag tag = arena::tag(address);
  if (tag.kind == PageKind::kManaged && kind != PageKind::kManaged) r.managed_pages -= pages;
  tag.kind = kind;
  if (kind == PageKind::kFree) {
    r.live_pages -= pages;
    tag = vacated(address, index_of(r));
  } else {
    tag.region = index_of(r);
  }
  arena::set_tags(address, pages, tag);
}

// --- making a region ---

// Maps the memfd in which they lie, from page `target` on, over pages of the region that the engine
// owns and registers them. 0 or -errno.
int map_run(Region& r, std::uint64_t page, std::uint64_t pages, int prot, std::uint64_t target) {
  const bool is_origin = r.kind == wire::RegionKind::kOrigin;
  const std::uint64_t address = r.begin + bytes(page);
  // An origin region is mapped privately from a descriptor without write permission: the copy is
  // shared with other engines, which must be safe from this one.
  const long at = sys::mmap(address, bytes(pages), is_origin ? PROT_READ : kReadWrite,
                            (is_origin ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE | MAP_FIXED,
                            memfd_of(r, target), bytes(r.first_page + target));
  if (sys::is_error(at)) return static_cast<int>(at);
  // A child's mapping would carry no userfaultfd: an absent page would read as zeroes there, and
  // writes would reach the parent.
  long error = sys::madvise(address, bytes(pages), MADV_DONTFORK);
  if (error == 0)
    error = userfault_register(session().userfault(), address, bytes(pages), !is_origin);
  if (error == 0 && prot != (is_origin ? PROT_READ : kReadWrite)) {
    error = sys::mprotect(address, bytes(pages), prot);
  }
  return static_cast<int>(error);
}

int map_pages(Region& r, std::uint64_t page, std::uint64_t pages, int prot, std::uint64_t target) {
  for (std::uint64_t i = 0; i < pages;) {
    std::uint64_t run = r.aside < 0 ? pages : 1;
    const int memfd = memfd_of(r, target + i);
    while (i + run < pages && memfd_of(r, target + i + run) == memfd) ++run;
    if (const int error = map_run(r, page + i, run, prot, target + i); error != 0) return error;
    i += run;
  }
  return 0;
}

// Takes memfd and table out of a reply. 0 or -errno; on error the region holds neither.
int adopt(Region& r, const wire::Reply& reply, Descriptors& received) {
  if (received.count < 2) return -EPROTO;
  const std::uint64_t pages_needed = reply.first_page + r.page_count;
  struct stat s;
  if (reply.first_page > wire::kRegionPagesMax || reply.page_count < pages_needed ||
      sys::call(SYS_fstat, received.fd[0].get(), sys::arg(&s)) != 0 ||
      static_cast<std::uint64_t>(s.st_size) < bytes(pages_needed)) {
    return -EPROTO;
  }
  const std::uint64_t table_bytes =
      align_up(wire::residency_table_bytes(reply.page_count), kOsPageBytes);
  if (sys::call(SYS_fstat, received.fd[1].get(), sys::arg(&s)) != 0 ||
      static_cast<std::uint64_t>(s.st_size) < wire::residency_table_bytes(reply.page_count)) {
    return -EPROTO;
  }
  const long at = sys::mmap(0, table_bytes, PROT_READ, MAP_SHARED, received.fd[1].get(), 0);
  if (sys::is_error(at)) return static_cast<int>(at);
  auto* header = reinterpret_cast<wire::ResidencyHeader*>(at);
  if (header->magic != wire::ResidencyHeader::kMagic || header->page_shift != kPageShift) {
    sys::munmap(static_cast<std::uint64_t>(at), table_bytes);
    return -EPROTO;
  }
  sys::madvise(static_cast<std::uint64_t>(at), table_bytes, MADV_DONTFORK);
  r.id = reply.region_id;
  r.first_page = reply.first_page;
  r.residency = header;
  r.residency_bytes = table_bytes;
  r.memfd = received.fd[0].release();
  r.residency_fd = received.fd[1].release();
  return 0;
}

int announce(const Region& r) {
  wire::Request request;
  request.op = wire::Op::kRegionMapped;
  request.region_id = r.id;
  request.address = r.begin;
  request.first_page = r.first_page;
  request.page_count = r.page_count;
  wire::Reply reply;
  return session().request(request, nullptr, 0, &reply, nullptr);
}

// The engine's file, in the agent's own descriptor table. Descriptor or -errno.
int open_engine_file(const Op& op) {
  Text path;
  path << "/proc/self/task/" << decimal(op.fd_tid).text << "/fd/" << decimal(op.fd).text;
  const long fd = sys::open(path.get(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return static_cast<int>(fd);
  struct stat s;
  if (sys::call(SYS_fstat, fd, sys::arg(&s)) != 0 || s.st_dev != op.device ||
      s.st_ino != op.inode) {
    sys::close(static_cast<int>(fd));
    return -EBADF;
  }
  return static_cast<int>(fd);
}

int open_session(bool says_why_not) {
  if (sys::now_ns() < retry_at_ns) return -ENOTCONN;
  const Status status = session().open();
  if (status.ok()) {
    retry_ns = kRetryMinNs;
    return 0;
  }
  retry_at_ns = sys::now_ns() + retry_ns;
  retry_ns = std::min(2 * retry_ns, kRetryMaxNs);
  if (says_why_not) notice("passing through: ", g_settings.socket_path, ": ", status.what());
  return -ENOTCONN;
}

bool needs_session();

// A daemon that dies is started again at once: whoever needs it is better off waiting for that than
// without it. Only this long after it went, so that one that stays away costs little.
bool wait_for_daemon() {
  constexpr std::uint64_t kPatienceNs = 2'000'000'000;
  constexpr std::uint64_t kTryEveryNs = 20'000'000;
  const std::uint64_t until = session().interrupted_ns() + kPatienceNs;
  for (;;) {
    if (session().state() == Session::State::kInterrupted) {
      if (needs_session()) {
        (void)try_resume();
      } else {
        session().end();
      }
    }
    if (session().state() == Session::State::kNone) (void)session().open().ok();
    if (session().state() == Session::State::kOpen) return true;
    if (sys::now_ns() >= until) return false;
    sys::sleep_ns(kTryEveryNs);
  }
}

int ensure_session() {
  switch (session().state()) {
    case Session::State::kOpen:
      return 0;
    case Session::State::kInterrupted:
      if (wait_for_daemon()) return 0;
      notice("passing through: kvmemd is away; regions it already serves wait for it");
      return -ENOTCONN;
    case Session::State::kNone:
      break;
  }
  return open_session(true);
}

// -EPIPE: the daemon went away meanwhile, and nothing is left of it.
int try_create(Op& op) {
  if (const int error = ensure_session(); error != 0) return error;
  const std::uint64_t pages = pages_for(op.size_bytes);
  if (const int error = arena::create(); error != 0) {
    notice(error == -EPERM ? "passing through: RLIMIT_AS (ulimit -v) leaves no room for addresses"
                           : "passing through: no room for addresses");
    return error;
  }
  const std::uint64_t address = arena::find(pages);
  Region* r = address == 0 ? nullptr : new_region();
  if (r == nullptr) {
    notice("passing through: too many regions");
    return -ENOMEM;
  }
  r->begin = address;
  r->page_count = pages;
  r->size_bytes = op.size_bytes;
  r->is_heap = op.is_heap;
  r->origin_offset = op.offset;
  r->bytes_max = op.bytes_max;
  wire::Request request;
  request.op = wire::Op::kRegionCreate;
  request.size_bytes = op.size_bytes;
  request.page_count = pages;
  request.host_bytes = op.bytes_max;
  if (op.tag != nullptr) strncpy(request.tag, op.tag, sizeof request.tag - 1);
  if (op.shadow != 0) {
    r->kind = wire::RegionKind::kOrigin;
    r->file = open_engine_file(op);
    if (r->file < 0) {
      const int error = r->file;
      notice("passing through a file: its descriptor cannot be reopened through /proc");
      free_region(*r);
      return error;
    }
    request.kind = wire::RegionKind::kOrigin;
    request.flags = wire::Request::kReadOnly;
    request.origin_offset = op.offset;
  }
  wire::Reply reply;
  Descriptors received;
  int error = session().request(request, &r->file, r->file >= 0 ? 1 : 0, &reply, &received);
  if (error != 0) {
    reply.message[sizeof reply.message - 1] = 0;
    if (error != -EPIPE) {
      notice("passing through ", decimal(static_cast<long long>(op.size_bytes >> 20)).text,
             " MiB: ", reply.message[0] != 0 ? reply.message : "kvmemd refused");
    }
    close_fd(r->file);
    free_region(*r);
    return error;
  }
  r->id = reply.region_id;
  error = adopt(*r, reply, received);
  if (error == 0) {
    error =
        map_pages(*r, 0, pages, r->kind == wire::RegionKind::kOrigin ? PROT_READ : kReadWrite, 0);
    if (error == 0) error = announce(*r);
    if (error != 0) arena::reserve(address, bytes(pages));
  }
  if (error != 0) {
    if (error != -EPIPE) {
      notice("passing through: a region could not be mapped: errno ", decimal(-error).text);
    }
    detach(*r);
    free_region(*r);
    return error;
  }
  r->managed_pages = r->live_pages = pages;
  r->shadow = op.shadow;
  PageTag tag;
  tag.kind = PageKind::kManaged;
  tag.prot = static_cast<std::uint8_t>(op.shadow != 0 ? PROT_READ : kReadWrite);
  tag.region = index_of(*r);
  arena::set_tags(address, pages, tag);
  op.address = address;
  return 0;
}

int create(Op& op) {
  constexpr int kTriesMax = 5;
  int error = try_create(op);
  for (int tries = 1; error == -EPIPE && tries < kTriesMax && wait_for_daemon(); ++tries) {
    error = try_create(op);
  }
  if (error != -EPIPE) return error;
  notice("passing through ", decimal(static_cast<long long>(op.size_bytes >> 20)).text,
         " MiB: kvmemd went away");
  return -ENOTCONN;
}

// --- pages at addresses of others ---

// What lies at a page of the region.
std::uint64_t target_of(const Region& r, std::uint64_t page) {
  for (std::uint32_t i = 0; i < r.alias_count; ++i) {
    const Region::Alias& a = r.aliases[i];
    if (page - a.page < a.page_count) return a.target + (page - a.page);
  }
  return page;
}

bool is_target(const Region& r, std::uint64_t page) {
  for (std::uint32_t i = 0; i < r.alias_count; ++i) {
    const Region::Alias& a = r.aliases[i];
    if (page - a.target < a.page_count) return true;
  }
  return false;
}

// REQUIRES: room for two more.
void set_alias(Region& r, const Region::Alias& alias) {
  const std::uint64_t begin = alias.page, end = alias.page + alias.page_count;
  const std::uint32_t count = r.alias_count;
  r.alias_count = 0;
  Region::Alias rest[2];
  unsigned rests = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const Region::Alias a = r.aliases[i];
    const std::uint64_t a_end = a.page + a.page_count;
    if (a_end <= begin || a.page >= end) {
      r.aliases[r.alias_count++] = a;
      continue;
    }
    // At most one reaches beyond each end.
    if (a.page < begin) rest[rests++] = {a.page, a.target, begin - a.page};
    if (a_end > end) rest[rests++] = {end, a.target + (end - a.page), a_end - end};
  }
  for (unsigned i = 0; i < rests; ++i) r.aliases[r.alias_count++] = rest[i];
  if (alias.page != alias.target) r.aliases[r.alias_count++] = alias;
}

int tell_alias(const Region& r, const Region::Alias& alias) {
  wire::Request request;
  request.op = wire::Op::kRegionAlias;
  request.region_id = r.id;
  request.address = r.begin;
  request.first_page = r.first_page + alias.page;
  request.page_count = alias.page_count;
  request.origin_offset = bytes(r.first_page + alias.target);
  wire::Reply reply;
  return session().request(request, nullptr, 0, &reply, nullptr);
}

int alias(const Op& op) {
  const PageTag tag = arena::tag(op.address);
  Region& r = regions[tag.region];
  const std::uint64_t pages = op.size_bytes >> kPageShift;
  const Region::Alias alias{page_of(r, op.address), op.offset >> kPageShift, pages};
  if (tag.kind != PageKind::kManaged || r.id == 0) return -ENOTCONN;  // ordinary memory by now
  if (alias.page + pages > r.page_count || alias.target + pages > r.page_count) return -EINVAL;
  if (r.aliases == nullptr) {
    const long at =
        sys::mmap(0, kAliasBytes, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sys::is_error(at)) return static_cast<int>(at);
    r.aliases = reinterpret_cast<Region::Alias*>(at);
  }
  // A cut may leave one more than there was: what frees some must always find room.
  if (alias.page != alias.target && r.alias_count >= kAliasesMax / 2) return -ENOSPC;
  if (r.alias_count + 2 >= kAliasesMax) return -ENOSPC;
  // The daemon first: its reply means that it has nothing under way there. One that is away is told
  // when it is back.
  if (const int error = tell_alias(r, alias); error != 0 && error != -EPIPE) return error;
  set_alias(r, alias);
  const int error = map_pages(r, alias.page, pages, tag.prot, alias.target);
  if (error != 0) {
    // What lies there and what the daemon thinks of it must never differ: nothing does.
    arena::reserve(op.address, op.size_bytes);
    const Region::Alias own{alias.page, alias.page, pages};
    (void)tell_alias(r, own);
    set_alias(r, own);
  }
  return error;
}

int drop_pages(const Op& op) {
  return for_spans(op.address, op.address + op.size_bytes,
                   [](const PageTag& tag, std::uint64_t at, std::uint64_t pages) -> int {
                     const Region& r = regions[tag.region];
                     if (tag.kind == PageKind::kManaged) {
                       return ask_range(wire::Op::kDiscard, r, page_of(r, at), pages);
                     }
                     // Given up by the daemon: ordinary memory by now.
                     if (is_ordinary(tag.kind)) sys::madvise(at, bytes(pages), MADV_DONTNEED);
                     return 0;
                   });
}

// The region's own pages there are not needed, but for those that lie elsewhere too.
void discard_own(const Region& r, std::uint64_t page, std::uint64_t pages) {
  for (std::uint64_t end = page + pages; page < end;) {
    std::uint64_t run = page;
    while (run < end && (r.alias_count == 0 || !is_target(r, run))) {
      run = r.alias_count == 0 ? end : run + 1;
    }
    if (run > page) (void)ask_range(wire::Op::kDiscard, r, page, run - page);
    page = run + 1;
  }
}

// --- taking pages out of management ---

// Threads that wait for a fault of the range find what is mapped there now.
void wake(std::uint64_t address, std::uint64_t pages) {
  userfault_wake(session().userfault(), address, bytes(pages));
}

void after_unmanaged(Region& r, std::uint64_t address, std::uint64_t pages, PageKind kind) {
  wake(address, pages);
  const std::uint64_t page = page_of(r, address);
  if (pages == r.managed_pages) {
    detach(r);
  } else {
    discard_own(r, page, pages);
  }
  retag(r, address, pages, kind);
}

// The engine unmaps managed pages.
void drop_managed(Region& r, std::uint64_t address, std::uint64_t pages) {
  const std::uint64_t page = page_of(r, address);
  // The daemon first: its reply means it has nothing under way there, so the addresses may be
  // used again.
  if (pages == r.managed_pages) {
    detach(r);
  } else {
    discard_own(r, page, pages);
  }
  arena::reserve(address, bytes(pages));
  wake(address, pages);
  if (r.shadow != 0) sys::munmap(r.shadow + bytes(page), bytes(pages));
  retag(r, address, pages, PageKind::kFree);
  if (r.live_pages == 0) free_region(r);
}

// Gives managed pages of a file back to a mapping of the file itself, atomically: the untouched
// mapping that was made beside the region moves over it.
int give_back(Region& r, std::uint64_t address, std::uint64_t pages, const PageTag& tag) {
  const std::uint64_t from = r.shadow + bytes(page_of(r, address));
  if (tag.prot != PROT_READ) {
    if (const long e = sys::mprotect(from, bytes(pages), tag.prot); e != 0)
      return static_cast<int>(e);
  }
  if (tag.is_dont_fork) sys::madvise(from, bytes(pages), MADV_DONTFORK);
  const long at =
      sys::mremap(from, bytes(pages), bytes(pages), MREMAP_MAYMOVE | MREMAP_FIXED, address);
  if (sys::is_error(at)) return static_cast<int>(at);
  after_unmanaged(r, address, pages, PageKind::kPlain);
  return 0;
}

// Replaces managed pages by fresh private memory.
int replace_by_zeroes(Region& r, std::uint64_t address, std::uint64_t pages, const PageTag& tag) {
  const long at =
      sys::mmap(address, bytes(pages), tag.prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (sys::is_error(at)) return static_cast<int>(at);
  if (tag.is_dont_fork) sys::madvise(address, bytes(pages), MADV_DONTFORK);
  after_unmanaged(r, address, pages, PageKind::kPlain);
  return 0;
}

int begin_hold(const Region& r, std::uint64_t page, std::uint64_t pages, std::uint64_t* token) {
  if (r.id == 0) return -ENOENT;
  wire::Request request;
  request.op = wire::Op::kForkBegin;
  request.region_id = r.id;  // a daemon that can may hold this range alone
  request.first_page = r.first_page + page;
  request.page_count = pages;
  wire::Reply reply;
  const int error = session().request(request, nullptr, 0, &reply, nullptr);
  *token = reply.fork_token;
  return error;
}

void end_hold(std::uint64_t token, int child_pid) {
  wire::Request request;
  request.op = wire::Op::kForkEnd;
  request.fork_token = token;
  request.pid = child_pid;
  wire::Reply reply;
  (void)session().request(request, nullptr, 0, &reply, nullptr);
}

// Copies what the memfd holds of the pages; holes are zeroes. 0 or -errno.
int copy_from_memfd(const Region& r, std::uint64_t page, std::uint64_t pages,
                    std::uint64_t target) {
  for (std::uint64_t i = 0; i < pages; ++i) {
    const int memfd = memfd_of(r, page + i);
    const std::uint64_t before = residency_word(r, page + i);
    const wire::Residency entry = wire::Residency::unpack(before);
    if (is_zero(entry)) continue;
    if (!is_in_memfd(entry)) return -EAGAIN;
    std::uint64_t done = 0;
    while (done < kPageBytes) {
      const long n =
          sys::call(SYS_pread64, memfd, sys::arg(target + bytes(i) + done),
                    sys::arg(kPageBytes - done), sys::arg(bytes(r.first_page + page + i) + done));
      if (n == -EINTR) continue;
      if (n <= 0) return n == 0 ? -EIO : static_cast<int>(n);
      done += static_cast<std::uint64_t>(n);
    }
    // Demoted and brought back meanwhile: the generation tells.
    const wire::Residency after = wire::Residency::unpack(residency_word(r, page + i));
    if (!is_in_memfd(after) || after.generation != entry.generation) return -EAGAIN;
  }
  return 0;
}

void drop_copies(Op& op) {
  if (op.copies.end > op.copies.at) sys::munmap(op.copies.target, op.copies.end - op.copies.at);
  op.copies = {};
}

// Where to copy the page, the first of `pages` that are to follow. Address or -errno.
long copy_target(Op& op, std::uint64_t address, std::uint64_t pages) {
  Op::Copies& c = op.copies;
  if (address < c.at || address >= c.end) {
    drop_copies(op);
    const long made =
        sys::mmap(0, bytes(pages), kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sys::is_error(made)) return made;
    c = {address, address + bytes(pages), static_cast<std::uint64_t>(made)};
  }
  if (const std::uint64_t skipped = address - c.at; skipped != 0) {
    sys::munmap(c.target, skipped);
    c.at += skipped;
    c.target += skipped;
  }
  // An untouched mapping would take on its new address, and merge with no neighbour.
  *reinterpret_cast<volatile char*>(c.target) = 0;
  return static_cast<long>(c.target);
}

// Replaces a managed anonymous page by a private copy, atomically and losing no write: the daemon
// holds writers back while the memfd is read; they go on in the copy. `pages`: as many are to
// follow, this one included.
int copy_out(Region& r, std::uint64_t address, std::uint64_t pages, const PageTag& tag, Op& op) {
  const std::uint64_t page = target_of(r, page_of(r, address));
  const long copy = copy_target(op, address, pages);
  if (sys::is_error(copy)) return static_cast<int>(copy);
  const std::uint64_t target = static_cast<std::uint64_t>(copy);
  (void)ask_range(wire::Op::kAdvise, r, page, 1, wire::Advice::kPin);
  std::uint64_t token = 0;
  const bool is_held = begin_hold(r, page, 1, &token) == 0;
  // Without a daemon that answers faults this holds writers as well.
  if (!is_held) userfault_write_protect(session().userfault(), address, kPageBytes);
  long error = copy_from_memfd(r, page, 1, target);
  if (error == 0 && tag.prot != kReadWrite) error = sys::mprotect(target, kPageBytes, tag.prot);
  if (error == 0 && tag.is_dont_fork) error = sys::madvise(target, kPageBytes, MADV_DONTFORK);
  if (error == 0) {
    const long at =
        sys::mremap(target, kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, address);
    if (sys::is_error(at)) error = at;
  }
  if (is_held) end_hold(token, -1);
  if (error != 0) {
    if (error != -EAGAIN) return static_cast<int>(error);
    sys::madvise(target, kPageBytes, MADV_DONTNEED);  // half a copy may be there
    // The page is elsewhere. A thread of the engine must fetch it.
    if ((tag.prot & PROT_READ) == 0) sys::mprotect(address, kPageBytes, PROT_READ);
    op.touch = address;
    op.touch_bytes = kPageBytes;
    return -EAGAIN;
  }
  op.copies.at += kPageBytes;
  op.copies.target += kPageBytes;
  after_unmanaged(r, address, 1, PageKind::kPlain);
  return 0;
}

// One page after the other: all of them need not fit into DRAM at once.
int make_plain(std::uint64_t address, std::uint64_t pages, const PageTag& tag, Op& op) {
  Region& r = regions[tag.region];
  if (r.kind == wire::RegionKind::kOrigin) return give_back(r, address, pages, tag);
  for (std::uint64_t i = 0; i < pages; ++i) {
    if (const int error = copy_out(r, address + bytes(i), pages - i, tag, op); error != 0)
      return error;
  }
  return 0;
}

// Makes every managed page plain that [begin, end) touches without covering it.
int make_edges_plain(std::uint64_t begin, std::uint64_t end, Op& op) {
  const std::uint64_t pages[2] = {align_down(begin, kPageBytes), align_down(end - 1, kPageBytes)};
  for (const std::uint64_t page : pages) {
    const PageTag tag = arena::tag(page);
    if (tag.kind != PageKind::kManaged || is_covered(tag, page, begin, end)) continue;
    if (const int error = make_plain(page, 1, tag, op); error != 0) return error;
  }
  return 0;
}

// --- the engine's calls ---

struct Bounds {
  std::uint64_t begin, end;
};
// The part of a span within the range of a call.
Bounds clip(std::uint64_t address, std::uint64_t pages, std::uint64_t begin, std::uint64_t end) {
  return {std::max(address, begin), std::min(address + bytes(pages), end)};
}

void drop_plain(const PageTag& tag, std::uint64_t address, std::uint64_t pages, std::uint64_t begin,
                std::uint64_t end) {
  for (std::uint64_t i = 0; i < pages; ++i) {
    const std::uint64_t page = address + bytes(i);
    if (!is_covered(tag, page, begin, end)) {
      const Bounds part = clip(page, 1, begin, end);
      arena::reserve(part.begin, part.end - part.begin);
      continue;
    }
    arena::reserve(page, kPageBytes);
    if (tag.kind == PageKind::kFixed) {
      arena::set_tags(page, 1, vacated(page, tag.region));
      continue;
    }
    Region& r = regions[tag.region];
    retag(r, page, 1, PageKind::kFree);
    if (r.live_pages == 0) free_region(r);
  }
}

int unmap(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  if (const int error = make_edges_plain(begin, end, op); error != 0) return error;
  return for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    const Bounds part = clip(at, pages, begin, end);
    switch (tag.kind) {
      case PageKind::kFree:
      case PageKind::kHole:
        break;
      case PageKind::kManaged:
        drop_managed(regions[tag.region], at, pages);
        break;
      case PageKind::kPlain:
      case PageKind::kFixed:
        drop_plain(tag, at, pages, begin, end);
        break;
      case PageKind::kForeign:
        sys::munmap(part.begin, part.end - part.begin);
        break;
    }
    return 0;
  });
}

int release(Op& op) {
  const Region& r = *region_at(op.address);
  const std::uint32_t index = index_of(r);
  const std::uint64_t begin = r.begin, end = r.end();
  // Pages that the engine unmapped before may be another region's by now.
  return for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    if (tag.region != index) return 0;
    if (tag.kind == PageKind::kManaged) drop_managed(regions[index], at, pages);
    if (tag.kind == PageKind::kPlain) drop_plain(tag, at, pages, at, at + bytes(pages));
    return 0;
  });
}

bool is_mapped_throughout(std::uint64_t begin, std::uint64_t end) {
  return for_spans(begin, end, [](const PageTag& tag, std::uint64_t, std::uint64_t) {
           return is_vacant(tag.kind) ? -ENOMEM : 0;
         }) == 0;
}

int protect(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  const int prot = op.value;
  if (!is_mapped_throughout(begin, end)) return -ENOMEM;
  const bool is_simple = prot == PROT_NONE || prot == PROT_READ || prot == kReadWrite;
  return for_spans(begin, end, [&](PageTag tag, std::uint64_t at, std::uint64_t pages) -> int {
    const Bounds part = clip(at, pages, begin, end);
    if (tag.kind == PageKind::kManaged) {
      const Region& r = regions[tag.region];
      if (tag.prot == prot) return 0;
      // A file's copy is shared: a mapping that may be written is the file's own.
      const bool stays = is_simple && !(r.kind == wire::RegionKind::kOrigin && (prot & PROT_WRITE));
      for (std::uint64_t i = 0; i < pages; ++i) {
        const std::uint64_t page = at + bytes(i);
        if (stays && is_covered(tag, page, begin, end)) continue;
        if (const int error = make_plain(page, stays ? 1 : pages - i, tag, op); error != 0)
          return error;
        if (!stays) break;
      }
      if (stays) {
        // Whole pages of equal kind; the edges may have become plain just now.
        return for_spans(
            at, at + bytes(pages), [&](PageTag now, std::uint64_t a, std::uint64_t n) -> int {
              if (now.kind == PageKind::kManaged) {
                if (const long e = sys::mprotect(a, bytes(n), prot); e != 0)
                  return static_cast<int>(e);
                now.prot = static_cast<std::uint8_t>(prot);
                arena::set_tags(a, n, now);
                return 0;
              }
              const Bounds edge = clip(a, n, begin, end);
              return static_cast<int>(sys::mprotect(edge.begin, edge.end - edge.begin, prot));
            });
      }
    }
    return static_cast<int>(sys::mprotect(part.begin, part.end - part.begin, prot));
  });
}

// What an advice means for managed pages.
enum class Meaning { kNothing, kZero, kMayZero, kHint, kDontFork, kDoFork, kKernel, kInvalid };

struct Advised {
  Meaning meaning;
  wire::Advice hint = wire::Advice::kNormal;
};

// Newer than some headers.
constexpr int kMadvCold = 20, kMadvPageout = 21, kMadvPopulateRead = 22, kMadvPopulateWrite = 23,
              kMadvDontneedLocked = 24, kMadvCollapse = 25;

Advised meaning_of(int advice) {
  switch (advice) {
    case MADV_DONTNEED:
    case kMadvDontneedLocked:
      return {Meaning::kZero};
    case MADV_FREE:
      return {Meaning::kMayZero};
    case MADV_NORMAL:
    case MADV_RANDOM:
      return {Meaning::kHint, wire::Advice::kNormal};
    case MADV_SEQUENTIAL:
      return {Meaning::kHint, wire::Advice::kSequential};
    case MADV_WILLNEED:
      return {Meaning::kHint, wire::Advice::kPrefetch};
    case kMadvCold:
    case kMadvPageout:
      return {Meaning::kHint, wire::Advice::kCold};
    case MADV_DONTFORK:
      return {Meaning::kDontFork};
    case MADV_DOFORK:
      return {Meaning::kDoFork};
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
    case MADV_KEEPONFORK:
    case kMadvCollapse:
      return {Meaning::kNothing};
    case kMadvPopulateRead:
    case kMadvPopulateWrite:
      return {Meaning::kKernel};
    default:
      return {Meaning::kInvalid};
  }
}

// MADV_DONTNEED on pages of a span. Parts of pages are left to the caller to zero.
int discard_span(const PageTag& tag, std::uint64_t at, std::uint64_t pages, Bounds part, Op& op) {
  Region& r = regions[tag.region];
  if (r.kind == wire::RegionKind::kOrigin) return 0;  // the same bytes come back
  std::uint64_t whole_begin = at, whole_end = at + bytes(pages);
  const bool may_leave = op.value == MADV_FREE;
  for (const std::uint64_t page : {at, at + bytes(pages - 1)}) {
    if (page < whole_begin || page >= whole_end || is_covered(tag, page, part.begin, part.end)) {
      continue;
    }
    (page == at ? whole_begin : whole_end) = page == at ? page + kPageBytes : page;
    if (may_leave || is_zero(wire::Residency::unpack(residency_word(r, page_of(r, page)))))
      continue;
    const Bounds edge = clip(page, 1, part.begin, part.end);
    if ((tag.prot & PROT_WRITE) != 0) {
      op.zero[op.zero[0].end == 0 ? 0 : 1] = {edge.begin, edge.end};
      continue;
    }
    if (const int error = make_plain(page, 1, tag, op); error != 0) return error;
    sys::madvise(edge.begin, edge.end - edge.begin, MADV_DONTNEED);
  }
  if (whole_begin >= whole_end) return 0;
  const std::uint64_t whole_pages = (whole_end - whole_begin) >> kPageShift;
  if (ask_range(wire::Op::kDiscard, r, page_of(r, whole_begin), whole_pages) == 0) return 0;
  // No daemon to ask: ordinary memory is zero at once.
  return replace_by_zeroes(r, whole_begin, whole_pages, tag);
}

int set_dont_fork(PageTag tag, std::uint64_t at, std::uint64_t pages, Bounds part, bool dont_fork,
                  Op& op) {
  for (std::uint64_t i = 0; i < pages; ++i) {
    const std::uint64_t page = at + bytes(i);
    if (tag.is_dont_fork == dont_fork) continue;
    if (is_covered(tag, page, part.begin, part.end)) {
      tag.is_dont_fork = dont_fork;
      arena::set_tags(page, 1, tag);
      tag.is_dont_fork = !dont_fork;
      continue;
    }
    if (const int error = make_plain(page, 1, tag, op); error != 0) return error;
    const Bounds edge = clip(page, 1, part.begin, part.end);
    sys::madvise(edge.begin, edge.end - edge.begin, op.value);
  }
  return 0;
}

int advise_managed(const PageTag& tag, std::uint64_t at, std::uint64_t pages, Bounds part, Op& op) {
  const Region& r = regions[tag.region];
  const Advised advised = meaning_of(op.value);
  switch (advised.meaning) {
    case Meaning::kNothing:
      return 0;
    case Meaning::kZero:
    case Meaning::kMayZero:
      if (op.value == MADV_FREE && r.kind == wire::RegionKind::kOrigin) return -EINVAL;
      return discard_span(tag, at, pages, part, op);
    case Meaning::kHint:
      (void)ask_range(wire::Op::kAdvise, r, page_of(r, at), pages, advised.hint);
      return 0;
    case Meaning::kDontFork:
    case Meaning::kDoFork:
      return set_dont_fork(tag, at, pages, part, advised.meaning == Meaning::kDontFork, op);
    case Meaning::kKernel:
      return 0;  // the caller does it: it may wait for faults
    case Meaning::kInvalid:
      break;
  }
  // MADV_REMOVE would punch the shared memory that stands for the engine's private memory.
  if (op.value == MADV_REMOVE) return r.kind == wire::RegionKind::kOrigin ? -EACCES : -EINVAL;
  if (const int error = make_plain(at, pages, tag, op); error != 0) return error;
  return static_cast<int>(sys::madvise(part.begin, part.end - part.begin, op.value));
}

int advise(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  bool has_hole = false;
  const int error =
      for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) -> int {
        const Bounds part = clip(at, pages, begin, end);
        if (tag.kind == PageKind::kManaged) return advise_managed(tag, at, pages, part, op);
        if (is_vacant(tag.kind)) {
          has_hole = true;
          return 0;
        }
        if (meaning_of(op.value).meaning == Meaning::kKernel) return 0;
        return static_cast<int>(sys::madvise(part.begin, part.end - part.begin, op.value));
      });
  return error != 0 ? error : has_hole ? -ENOMEM : 0;
}

int lock(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  const bool is_lock = op.kind == Op::Kind::kLock;
  if (!is_mapped_throughout(begin, end)) return -ENOMEM;
  return for_spans(
      begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) -> int {
        const Bounds part = clip(at, pages, begin, end);
        if (tag.kind != PageKind::kManaged) {
          const long length = static_cast<long>(part.end - part.begin);
          return static_cast<int>(
              is_lock ? sys::call(SYS_mlock2, sys::arg(part.begin), length, op.value)
                      : sys::call(SYS_munlock, sys::arg(part.begin), length));
        }
        const Region& r = regions[tag.region];
        if (is_lock) {
          return ask_range(wire::Op::kAdvise, r, page_of(r, at), pages, wire::Advice::kPin) == 0
                     ? 0
                     : -ENOMEM;
        }
        // A page of which a part stays locked stays pinned.
        std::uint64_t first = at, last = at + bytes(pages);
        if (!is_covered(tag, first, begin, end)) first += kPageBytes;
        if (last > first && !is_covered(tag, last - kPageBytes, begin, end)) last -= kPageBytes;
        if (last > first) {
          (void)ask_range(wire::Op::kAdvise, r, page_of(r, first), (last - first) >> kPageShift,
                          wire::Advice::kUnpin);
        }
        return 0;
      });
}

int make_range_plain(Op& op) {
  return for_spans(op.address, op.address + op.size_bytes,
                   [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
                     return tag.kind == PageKind::kManaged ? make_plain(at, pages, tag, op) : 0;
                   });
}

// Readies a range for a fixed mapping, which the caller makes. op.value: MAP_FIXED_NOREPLACE.
int claim(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  if (op.value != 0) {
    const int taken = for_spans(begin, end, [](const PageTag& tag, std::uint64_t, std::uint64_t) {
      return is_vacant(tag.kind) ? 0 : -EEXIST;
    });
    if (taken != 0) return taken;
  }
  if (const int error = make_edges_plain(begin, end, op); error != 0) return error;
  return for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    if (tag.kind == PageKind::kForeign) return 0;
    if (tag.kind == PageKind::kManaged) drop_managed(regions[tag.region], at, pages);
    for (std::uint64_t i = 0; i < pages; ++i) {
      const std::uint64_t page = at + bytes(i);
      if (tag.kind == PageKind::kPlain) {
        if (!is_covered(tag, page, begin, end)) continue;  // a part of it stays the region's
        drop_plain(tag, page, 1, begin, end);
      }
      PageTag fixed = arena::tag(page);
      fixed.kind = PageKind::kFixed;
      arena::set_tags(page, 1, fixed);
    }
    return 0;
  });
}

// The kernel moved the range's mapping away.
int moved(Op& op) {
  const std::uint64_t begin = op.address, end = begin + op.size_bytes;
  arena::reserve_hole(begin, end - begin);
  return for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    if (is_ordinary(tag.kind)) drop_plain(tag, at, pages, begin, end);
    return 0;
  });
}

// --- fork ---

template <class Function>
void for_managed(const Region& r, Function function) {
  const std::uint32_t index = index_of(r);
  if (r.managed_pages == 0) return;
  (void)for_spans(r.begin, r.end(), [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    if (tag.kind == PageKind::kManaged && tag.region == index) function(tag, at, pages);
    return 0;
  });
}

bool is_cloned_by_fork(const Region& r) {
  bool is = false;
  if (r.kind == wire::RegionKind::kAnonymous) {
    for_managed(r,
                [&](const PageTag& tag, std::uint64_t, std::uint64_t) { is |= !tag.is_dont_fork; });
  }
  return is;
}

int fork_begin(Op& op) {
  bool is_needed = false;
  for (std::uint32_t i = 1; i <= region_high && !is_needed; ++i) {
    is_needed = is_cloned_by_fork(regions[i]);
  }
  op.token = 0;
  if (is_needed) {
    wire::Request request;
    request.op = wire::Op::kForkBegin;
    wire::Reply reply;
    const int error = session().request(request, nullptr, 0, &reply, nullptr);
    // The caller waits for a daemon that is away, up to a point (op.value).
    if (error == -EPIPE && op.value == 0) return -ENOTCONN;
    if (error != 0) {
      detail("kvmemd cannot clone regions: errno ", decimal(-error).text);
    } else {
      op.token = reply.fork_token;
    }
  }
  fork_token = op.token;
  set_calls_only(true);
  return 0;
}

int fork_end(const Op& op) {
  set_calls_only(false);
  if (fork_token != 0) end_hold(fork_token, op.value);
  fork_token = 0;
  return 0;
}

void lose_in_child(Region& r) {
  for_managed(r, [&](const PageTag&, std::uint64_t at, std::uint64_t pages) {
    arena::reserve(at, bytes(pages));
    retag(r, at, pages, PageKind::kPlain);
  });
  r.id = 0;
  detach(r);
}

int claim_clone(Region& r) {
  wire::Request request;
  request.op = wire::Op::kForkClaim;
  request.fork_token = fork_token;
  request.region_id = r.id;
  wire::Reply reply;
  Descriptors received;
  int error = session().request(request, nullptr, 0, &reply, &received);
  if (error != 0) return error;
  r.id = reply.region_id;
  error = adopt(r, reply, received);
  for_managed(r, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    const std::uint64_t page = page_of(r, at);
    if (error == 0) error = map_pages(r, page, pages, tag.prot, page);
  });
  if (error == 0) error = announce(r);
  if (error != 0) detach(r);
  return error;
}

// A region of which the engine let the child inherit nothing (MADV_DONTFORK).
bool is_not_inherited(const Region& r) { return r.begin != 0 && r.live_pages == 0; }

int claim_in_child() {
  const Status opened = session().open();
  bool is_whole = opened.ok();
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    Region& r = regions[i];
    if (is_not_inherited(r)) {
      // The daemon made a clone all the same, and would keep it until it gives up waiting.
      if (opened.ok() && claim_clone(r) == 0) detach(r);
      free_region(r);
      continue;
    }
    if (r.managed_pages == 0) continue;
    if (opened.ok() && claim_clone(r) == 0) continue;
    lose_in_child(r);
    is_whole = false;
  }
  return is_whole ? 0 : -ENOTCONN;
}

// --- pages that huge ones cannot be had for ---

// The region's ordinary memfd. 0 or -errno.
int fetch_aside(Region& r) {
  wire::Request request;
  request.op = wire::Op::kRegionAside;
  request.region_id = r.id;
  request.address = r.begin;
  request.first_page = r.first_page;
  wire::Reply reply;
  Descriptors received;
  const int error = session().request(request, nullptr, 0, &reply, &received);
  if (error != 0) return error;
  struct stat s;
  if (received.count < 1 || sys::call(SYS_fstat, received.fd[0].get(), sys::arg(&s)) != 0 ||
      static_cast<std::uint64_t>(s.st_size) < bytes(r.first_page + r.page_count)) {
    return -EPROTO;
  }
  r.aside = received.fd[0].release();
  return 0;
}

// Maps the page, whose bytes lie aside, at one of its addresses, if that is still the region's.
// Other threads may touch it at any time: the mapping takes the old one's place at once, and until
// it is registered nothing of it is absent. `is_first`: it lies nowhere there yet, and what fails
// is left as it was; false once it lies there. 0 or -errno.
int map_aside(Region& r, std::uint64_t at, std::uint64_t page, bool& is_first) {
  const PageTag tag = arena::tag(r.begin + bytes(at));
  if (tag.kind != PageKind::kManaged || tag.region != index_of(r)) return 0;
  const std::uint64_t address = r.begin + bytes(at);
  long error = sys::mmap(address, kPageBytes, tag.prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
                         r.aside, bytes(r.first_page + page));
  if (sys::is_error(error) && is_first) return static_cast<int>(error);
  is_first = false;
  if (!sys::is_error(error)) error = sys::madvise(address, kPageBytes, MADV_DONTFORK);
  if (error == 0) error = userfault_register(session().userfault(), address, kPageBytes, true);
  if (error != 0) {
    // What lies there and what the daemon thinks of it must never differ: nothing does.
    arena::reserve(address, kPageBytes);
    alarm("a page could not be mapped: errno ", decimal(-error).text, "; access raises SIGSEGV");
  }
  wake(address, 1);
  return 0;
}

// Calls back with every page at whose address `page` lies, until one answers other than 0.
template <class F>
int for_places_of(const Region& r, std::uint64_t page, F call) {
  if (target_of(r, page) == page) {
    if (const int result = call(page); result != 0) return result;
  }
  for (std::uint32_t i = 0; i < r.alias_count; ++i) {
    const Region::Alias& a = r.aliases[i];
    if (page - a.target >= a.page_count) continue;
    if (const int result = call(a.page + (page - a.target)); result != 0) return result;
  }
  return 0;
}

// Wherever the page lies. 0, or -errno: nowhere.
int map_aside_everywhere(Region& r, std::uint64_t page) {
  bool is_first = true;
  return for_places_of(r, page, [&](std::uint64_t at) { return map_aside(r, at, page, is_first); });
}

// The daemon has no huge page for a page that is absent. 0, or -errno: it waits on.
int move_page_aside(Region& r, std::uint64_t page) {
  if (r.id == 0) return -ENOENT;
  if (memfd_of(r, page) == r.aside) return 0;  // r.memfd >= 0
  if (r.aside < 0) {
    if (const int error = fetch_aside(r); error != 0) return error;
  }
  wire::Request request;
  request.op = wire::Op::kRegionAside;
  request.region_id = r.id;
  request.address = r.begin;
  request.first_page = r.first_page + page;
  request.page_count = 1;
  wire::Reply reply;
  const int asked = session().request(request, nullptr, 0, &reply, nullptr);
  // A daemon that is gone may have published it before it could answer.
  if (asked != 0 && !(asked == -EPIPE && memfd_of(r, page) == r.aside)) return asked;
  const int error = map_aside_everywhere(r, page);
  request.flags = wire::Request::kDone;
  if (error != 0) request.flags |= wire::Request::kFailed;
  const int told = session().request(request, nullptr, 0, &reply, nullptr);
  if (error != 0 && told != 0 && memfd_of(r, page) == r.aside) {
    // The table says otherwise than what is mapped, and nobody is there to take it back.
    for_places_of(r, page, [&](std::uint64_t at) {
      arena::reserve(r.begin + bytes(at), kPageBytes);
      return 0;
    });
    alarm("a page could not be mapped: errno ", decimal(-error).text, "; access raises SIGSEGV");
  }
  return error;
}

int move_aside(const PageTag& tag, std::uint64_t address, std::uint64_t pages) {
  Region& r = regions[tag.region];
  if (r.kind == wire::RegionKind::kOrigin) return give_back(r, address, pages, tag);
  int result = 0;
  for (std::uint64_t i = 0; i < pages; ++i) {
    const int error = move_page_aside(r, target_of(r, page_of(r, address) + i));
    if (error == -EPIPE) return error;
    if (error != 0) result = error;
  }
  return result;
}

// --- the daemon's commands and its return ---

int on_command(const wire::AgentCommand& command) {
#ifdef KVMEM_WITH_CUDA
  if (command.op >= wire::AgentOp::kPark && command.op <= wire::AgentOp::kGiveBack) {
    return device::carry_out(command);
  }
#endif
  for (std::uint32_t i = 0; i < command.run_count; ++i) {
    const std::uint64_t begin = command.runs[i].address;
    const std::uint64_t size_bytes = command.runs[i].size_bytes;
    if (!is_aligned(begin | size_bytes, kPageBytes) || size_bytes > bytes(wire::kRegionPagesMax) ||
        !in_arena(begin) || size_bytes == 0 || !in_arena(begin + size_bytes - 1)) {
      return -EINVAL;
    }
    (void)for_spans(
        begin, begin + size_bytes, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
          // The command may be older than what the engine has there now: only pages that are still
          // a region's, and poisoned only when the table says so.
          if (tag.kind != PageKind::kManaged) return 0;
          if (command.op == wire::AgentOp::kDropMapping) {
            sys::madvise(at, bytes(pages), MADV_DONTNEED);
            return 0;
          }
          if (command.op == wire::AgentOp::kMoveAside) return move_aside(tag, at, pages);
          if (command.op != wire::AgentOp::kPoison) return 0;
          Region& r = regions[tag.region];
          for (std::uint64_t p = 0; p < pages; ++p) {
            const std::uint64_t page = at + bytes(p);
            if (state_of(r, target_of(r, page_of(r, page))) != PageState::kLost) continue;
            // A mapping beyond the end of its file: access raises SIGBUS.
            const long empty =
                sys::call(SYS_memfd_create, sys::arg("kvmem-lost"), 1 /* MFD_CLOEXEC */);
            const long mapped = empty < 0
                                    ? empty
                                    : sys::mmap(page, kPageBytes, kReadWrite,
                                                MAP_SHARED | MAP_FIXED, static_cast<int>(empty), 0);
            if (sys::is_error(mapped)) arena::reserve(page, kPageBytes);
            if (empty >= 0) sys::close(static_cast<int>(empty));
            after_unmanaged(r, page, 1, PageKind::kPlain);
          }
          return 0;
        });
  }
  return 0;
}

bool needs_session() {
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    if (regions[i].managed_pages != 0) return true;
  }
#ifdef KVMEM_WITH_CUDA
  if (device::has_claims()) return true;
#endif
  return false;
}

// The region can no longer be served: keeps every byte that is still within reach.
void abandon(Region& r) {
  for_managed(r, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
    for (std::uint64_t p = 0; p < pages; ++p) {
      const std::uint64_t page = at + bytes(p);
      Op op{};
      // In single pages, so that the rest survives where one does not.
      const int error = make_plain(page, 1, tag, op);
      drop_copies(op);
      if (error == 0) continue;
      notice("a page was lost with kvmemd; access raises SIGSEGV");
      arena::reserve(page, kPageBytes);
      after_unmanaged(r, page, 1, PageKind::kPlain);
    }
  });
}

// Gives one region back to the daemon. 0, or -EPIPE: interrupted again.
int resume(Region& r) {
  wire::Request request;
  request.op = wire::Op::kRegionResume;
  request.region_id = r.id;
  request.kind = r.kind;
  request.address = r.begin;
  request.first_page = r.first_page;
  request.page_count = r.page_count;
  request.size_bytes = r.size_bytes;
  request.origin_offset = r.origin_offset;
  request.host_bytes = r.bytes_max;
  if (r.kind == wire::RegionKind::kOrigin) request.flags = wire::Request::kReadOnly;
  if (r.alias_count != 0) request.flags |= wire::Request::kAliased;
  // (A file's region has nothing aside.)
  const int fds[] = {r.memfd, r.residency_fd, r.file >= 0 ? r.file : r.aside};
  wire::Reply reply;
  int error = session().request(request, fds, fds[2] >= 0 ? 3 : 2, &reply, nullptr);
  for (std::uint32_t i = 0; error == 0 && i < r.alias_count; ++i) {
    error = tell_alias(r, r.aliases[i]);
  }
  if (error == 0 && r.alias_count != 0) error = announce(r);
  if (error == -EPIPE) return -EPIPE;
  if (error != 0) {
    reply.message[sizeof reply.message - 1] = 0;
    notice("kvmemd did not take a region back: ", reply.message);
    r.id = 0;
  }
  return 0;
}

int on_resumed() {
  // All of them before anything else is asked: the daemon takes another request as the end of the
  // list, and what it has not been given back by then as gone.
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    Region& r = regions[i];
    if (r.managed_pages == 0 || r.id == 0) continue;
    if (resume(r) != 0) return -EPIPE;
  }
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    Region& r = regions[i];
    if (r.managed_pages == 0) continue;
    if (r.id == 0) {
      abandon(r);
      continue;
    }
    // What the engine took out of management meanwhile.
    (void)for_spans(r.begin, r.end(),
                    [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
                      if (tag.kind != PageKind::kManaged || tag.region != i) {
                        discard_own(r, page_of(r, at), pages);
                      }
                      return 0;
                    });
  }
#ifdef KVMEM_WITH_CUDA
  device::tell_all();
#endif
  return session().state() == Session::State::kOpen ? 0 : -EPIPE;
}

void on_refused(const Status& why) {
#ifdef KVMEM_WITH_CUDA
  device::tell_all();
#endif
  notice("kvmemd did not take this process back: ", why.what());
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    if (regions[i].managed_pages == 0) continue;
    regions[i].id = 0;
    abandon(regions[i]);
  }
}

// --- what the C API asks ---

int advise_daemon(const Op& op) {
  int result = 0;
  (void)for_spans(op.address, op.address + op.size_bytes,
                  [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
                    if (tag.kind != PageKind::kManaged) return 0;
                    const Region& r = regions[tag.region];
                    const int error = ask_range(wire::Op::kAdvise, r, page_of(r, at), pages,
                                                static_cast<wire::Advice>(op.value));
                    if (error != 0 && result == 0) result = error == -EPIPE ? -ENOTCONN : error;
                    return 0;
                  });
  return result;
}

int count(const Op& op) {
  Counts& counts = *static_cast<Counts*>(op.output);
  counts = {};
  counts.is_connected = session().state() == Session::State::kOpen;
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    const Region& r = regions[i];
    if (r.live_pages == 0) continue;
    ++counts.regions;
    counts.managed_bytes += bytes(r.managed_pages);
    counts.plain_bytes += bytes(r.live_pages - r.managed_pages);
    for_managed(r, [&](const PageTag&, std::uint64_t at, std::uint64_t pages) {
      for (std::uint64_t p = 0; p < pages; ++p) {
        ++counts.pages[static_cast<unsigned>(state_of(r, page_of(r, at) + p)) & 15];
      }
    });
  }
  return 0;
}

int residency(const Op& op) {
  auto* vector = static_cast<unsigned char*>(op.output);
  return for_spans(op.address, op.address + op.size_bytes,
                   [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
                     for (std::uint64_t p = 0; p < pages; ++p) {
                       if (is_vacant(tag.kind)) return -ENOMEM;
                       const Region& r = regions[tag.region];
                       *vector++ = tag.kind == PageKind::kManaged
                                       ? static_cast<unsigned char>(state_of(r, page_of(r, at) + p))
                                       : 255;
                     }
                     return 0;
                   });
}

}  // namespace

Region* region_at(std::uint64_t address) {
  const PageTag tag = arena::tag(address);
  if (tag.kind != PageKind::kManaged && tag.kind != PageKind::kPlain) return nullptr;
  return &regions[tag.region];
}

namespace {

int carry_out(Op& op) {
  switch (op.kind) {
    case Op::Kind::kCreate:
      return create(op);
    case Op::Kind::kRelease:
      return release(op);
    case Op::Kind::kUnmap:
      return unmap(op);
    case Op::Kind::kProtect:
      return protect(op);
    case Op::Kind::kAdvise:
      return advise(op);
    case Op::Kind::kLock:
    case Op::Kind::kUnlock:
      return lock(op);
    case Op::Kind::kMakePlain:
      return make_range_plain(op);
    case Op::Kind::kClaim:
      return claim(op);
    case Op::Kind::kMoved:
      return moved(op);
    case Op::Kind::kForkBegin:
      return fork_begin(op);
    case Op::Kind::kForkEnd:
      return fork_end(op);
    case Op::Kind::kForkChild:
      return claim_in_child();
    case Op::Kind::kAlias:
      return alias(op);
    case Op::Kind::kDropPages:
      return drop_pages(op);
    case Op::Kind::kAdviseDaemon:
      return advise_daemon(op);
    case Op::Kind::kStats:
      return count(op);
    case Op::Kind::kResidency:
      return residency(op);
  }
  return -ENOSYS;
}

}  // namespace

int serve(void* context) {
  Op& op = *static_cast<Op*>(context);
  op.touch_bytes = 0;
  op.zero[0] = op.zero[1] = {};
  const int result = carry_out(op);
  if (result != -EAGAIN || op.touch_bytes == 0) drop_copies(op);
  return result;
}

void give_up(Op& op) { drop_copies(op); }

bool enter_child(bool close_descriptors) {
  bool is_claim_needed = false;
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    Region& r = regions[i];
    if (r.live_pages == 0) continue;
    if (close_descriptors) {
      close_fd(r.memfd);
      close_fd(r.aside);
      close_fd(r.residency_fd);
      close_fd(r.file);
    }
    r.memfd = r.aside = r.residency_fd = r.file = -1;
    r.residency = nullptr;  // not inherited: MADV_DONTFORK
    const bool is_origin = r.kind == wire::RegionKind::kOrigin;
    if (is_origin) r.id = 0;
    const std::uint64_t begin = r.begin, end = r.end();
    (void)for_spans(begin, end, [&](const PageTag& tag, std::uint64_t at, std::uint64_t pages) {
      if (tag.kind != PageKind::kManaged || tag.region != i) return 0;
      if (tag.is_dont_fork) {  // not inherited without kvmem either
        arena::reserve(at, bytes(pages));
        retag(r, at, pages, PageKind::kFree);
        return 0;
      }
      if (!is_origin) {
        is_claim_needed = true;
        return 0;
      }
      const std::uint64_t from = r.shadow + bytes(page_of(r, at));
      if (tag.prot != PROT_READ) sys::mprotect(from, bytes(pages), tag.prot);
      const long moved_to =
          sys::mremap(from, bytes(pages), bytes(pages), MREMAP_MAYMOVE | MREMAP_FIXED, at);
      if (sys::is_error(moved_to)) arena::reserve(at, bytes(pages));
      retag(r, at, pages, PageKind::kPlain);
      return 0;
    });
    if (is_origin) detach(r);
    if (is_origin && r.live_pages == 0) free_region(r);
  }
  retry_at_ns = 0;
  retry_ns = kRetryMinNs;
  if (!is_claim_needed) give_up_in_child();
  return is_claim_needed;
}

void give_up_in_child() {
  for (std::uint32_t i = 1; i <= region_high; ++i) {
    Region& r = regions[i];
    if (r.managed_pages != 0) lose_in_child(r);
    if (!is_not_inherited(r)) continue;
    r.id = 0;
    detach(r);
    free_region(r);
  }
}

int connect_quietly() {
  if (session().state() == Session::State::kNone) (void)open_session(false);
  return session().state() == Session::State::kOpen ? 0 : -ENOTCONN;
}

void install() { set_agent_handlers({on_command, needs_session, on_resumed, on_refused}); }

}  // namespace kvmem::table

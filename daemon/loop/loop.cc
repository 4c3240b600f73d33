#include "loop/loop.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "base/check.h"
#include "os/clock.h"
#include "os/log.h"

namespace kvmem::loop {
namespace {

using migrate::Region;
using migrate::View;
using residency::PageState;
using residency::Residency;

constexpr unsigned kRingEntries = 1024;
constexpr std::uint32_t kMovesEachWay = 32;
constexpr std::size_t kMoveLogMax = 16384;           // 40 bytes each
constexpr std::uint64_t kTickNs = 20'000'000;        // while the store has something to sync
constexpr std::uint64_t kRetryNs = 10'000'000;       // while a fault waits for a frame
constexpr std::uint64_t kRecoverNs = 1'000'000'000;  // after a shortage, one page more a second
constexpr std::uint64_t kPressureLogNs = 10'000'000'000;
constexpr std::uint64_t kSpareShare = 20;  // of ordinary memory one part stays the machine's own
constexpr std::uint64_t kWaitLogNs = 10'000'000'000;  // more than an engine that answers makes wait
constexpr std::uint64_t kRegionIdMask = (std::uint64_t{1} << 40) - 1;
constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 24;

std::uint64_t random_word() {
  std::uint64_t word = os::now_ns();
  (void)!::getrandom(&word, sizeof word, 0);
  return word;
}

void read_boot_id(std::uint8_t (&boot_id)[16]) {
  UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[64] = {};
  if (!fd || ::read(fd.get(), text, sizeof text - 1) < 36) return;
  unsigned digits = 0;
  for (const char* c = text; *c != 0 && digits < 32; ++c) {
    const int value = *c >= '0' && *c <= '9'   ? *c - '0'
                      : *c >= 'a' && *c <= 'f' ? *c - 'a' + 10
                                               : -1;
    if (value < 0) continue;
    boot_id[digits / 2] = static_cast<std::uint8_t>(boot_id[digits / 2] << 4 | value);
    ++digits;
  }
}

bool key_less(const tier::Record& a, const tier::Record& b) {
  if (a.key.hi != b.key.hi) return a.key.hi < b.key.hi;
  return a.key.lo < b.key.lo;
}

// How many pages of ordinary memory can be had: it runs out by killing somebody, not by an error.
std::uint64_t spare_pages() {
  const std::uint64_t available = os::memory_available_bytes();
  const std::uint64_t kept = os::memory_total_bytes() / kSpareShare;
  return (available - std::min(available, kept)) >> kPageShift;
}

PlacerOptions placer_options(const LoopOptions& options) {
  PlacerOptions placer;
  placer.places_per_s = static_cast<double>(options.place_bytes_per_s) / kPageBytes;
  return placer;
}

PlannerOptions planner_options(const LoopOptions& options) {
  PlannerOptions planner;
  planner.capacity_pages = options.dram_pages + options.cxl_pages;
  planner.inflight_fills_max = options.prefetch_depth;
  if (!options.sampling) planner.sample_permille = 0;
  return planner;
}

}  // namespace

Loop::Loop(const LoopOptions& options, os::Ring ring)
    : options_(options),
      ring_(std::move(ring)),
      memory_({"dram", options.dram_nodes, options.dram_pages},
              {"cxl", options.cxl_nodes, options.cxl_pages}),
      planner_(planner_options(options)),
      placer_(placer_options(options)),
      next_region_id_(random_word() & (kRegionIdMask >> 1)),
      sampling_(options.sampling) {}

Result<std::unique_ptr<Loop>> Loop::create(const LoopOptions& options) {
  KV_ASSIGN_OR_RETURN(os::Ring ring, os::Ring::create(kRingEntries));
  std::unique_ptr<Loop> loop(new Loop(options, std::move(ring)));
  KV_ASSIGN_OR_RETURN(loop->workers_, os::WorkerPool::create(loop->ring_, options.workers));
  if (!options.store_path.empty()) {
    KV_ASSIGN_OR_RETURN(auto device, os::open_block_file(loop->ring_, options.store_path));
    tier::StoreOptions store;
    store.capacity_bytes = options.store_bytes;
    store.sync_interval_ns = options.sync_interval_ns;
    read_boot_id(store.boot_id);
    KV_ASSIGN_OR_RETURN(loop->store_,
                        tier::Store::open(std::move(device), loop->checksums_, store));
    loop->recovered_ = loop->store_->records();
    std::erase_if(loop->recovered_,
                  [](const tier::Record& r) { return r.kind != tier::RecordKind::kEphemeral; });
    std::sort(loop->recovered_.begin(), loop->recovered_.end(), key_less);
  }
  loop->migrator_ = std::make_unique<migrate::Migrator>(
      loop->ring_, *loop->workers_, loop->memory_, loop->store_.get(), *loop,
      migrate::MigratorOptions{.fills_max = kMovesEachWay, .demotes_max = kMovesEachWay});
  return loop;
}

Loop::~Loop() {
  if (migrator_ == nullptr) return;
  detach();
}

void Loop::detach() {
  migrator_->detach();
  tick_.stop();
  retry_.stop();
  place_tick_.stop();
  // Bounded by the devices: nothing new starts.
  while (migrator_->fills_in_flight() > 0 || migrator_->demotes_in_flight() > 0 ||
         migrator_->places_in_flight() > 0 || tick_.busy() || retry_.busy() || place_tick_.busy()) {
    if (!ring_.run_once(true).ok()) break;
  }
}

Status Loop::run_once() {
  KV_TRY(ring_.run_once(true).status());
  if (migrator_->detached()) return {};
  migrator_->serve_waiting();
  if (migrator_->take_huge_change()) heed_huge_pages();
  if (changed_ || migrator_->demands_waiting() > 0) {
    changed_ = false;
    plan();
  }
  if (hand_ != nullptr) hand_->flush();
  if (migrator_->huge_pages_gone()) say_who_waits();
  arm_tick();
  return {};
}

// The machine has fewer frames than the budget: live with what is there, and say so.
void Loop::heed_shortages() {
  for (const model::Memory memory : {model::Memory::kDram, model::Memory::kCxl}) {
    if (!migrator_->take_shortage(memory)) continue;
    const tier::MemoryNode& node = memory_[memory];
    const std::uint64_t used = node.used_pages();
    const std::uint64_t least = memory == model::Memory::kDram ? 1 : 0;
    set_capacity(memory, std::min(node.capacity_pages(), used > least ? used - 1 : least));
    last_shortage_ns_ = os::now_ns();
    if (last_shortage_ns_ - last_shortage_log_ns_ <= kPressureLogNs) continue;
    last_shortage_log_ns_ = last_shortage_ns_;
    os::log(os::Severity::kWarning,
            "the machine has no memory for more than %" PRIu64 " of the %" PRIu64
            " pages of %s.budget: living with those until it has%s",
            node.capacity_pages(), node.budget_pages(), node.name().c_str(),
            options_.memory_kind != os::MemoryKind::kHugeTlb ? ""
            : memory == model::Memory::kDram
                ? "; did the pool of huge pages shrink? set vm.nr_hugepages again"
                : "; set nr_hugepages of the node, in /sys/devices/system/node/node*/hugepages/");
  }
}

void Loop::set_capacity(model::Memory memory, std::uint64_t pages) {
  memory_[memory].live_with(pages);
  capacity_changed();
}

void Loop::capacity_changed() {
  planner_.set_capacity(memory_.capacity_pages());
  changed_ = true;
}

void Loop::plan() {
  heed_shortages();
  const std::uint64_t used = memory_.used_pages();
  const std::uint64_t capacity = memory_.capacity_pages();
  std::uint64_t over = used > capacity ? used - capacity : 0;
  // A fault may wait for more frames than the planner heard of: a forked child's copy comes first.
  if (over == 0 && migrator_->demands_waiting() > 0 && memory_.free_pages() == 0) over = 1;
  planner_.plan(memory_.free_pages(), over, migrator_->fills_in_flight(),
                migrator_->demotes_in_flight(), planned_);
  std::uint32_t demotes_started = 0;
  for (const model::Move& move : planned_.demote) {
    Region* region = by_slot_[move.page.region];
    if (region == nullptr) continue;
    const PageState from = region->table.read(move.page.page).state;
    const Status status = migrator_->demote(*region, move.page.page);
    if (status.ok()) {
      ++demotes_started;
      log_move(move.page, from, region->origin != nullptr ? PageState::kOrigin : PageState::kStored,
               move.reason);
    } else if (status.code() == Code::kUnsupported) {
      planner_.demote_failed(move.page);
    }
  }
  for (const model::Move& move : planned_.promote) {
    Region* region = by_slot_[move.page.region];
    if (region == nullptr) continue;
    const PageState from = region->table.read(move.page.page).state;
    if (migrator_->promote(*region, move.page.page).ok()) {
      log_move(move.page, from, PageState::kResident, move.reason);
    }
  }
  if (hand_ != nullptr && sampling_) {
    for (const model::Move& move : planned_.sample) {
      Region* region = by_slot_[move.page.region];
      if (!unmap(*region, move.page.page)) continue;
      planner_.sample_armed(move.page);
      placer_.looked_at(move.page, os::now_ns());
    }
  }
  // A fault must not wait for room that nothing can make: the budget gives way, and it is said.
  if (migrator_->demands_waiting() > 0 && demotes_started == 0 &&
      migrator_->demotes_in_flight() == 0 && migrator_->fills_in_flight() == 0 &&
      memory_.free_pages() == 0) {
    const std::uint64_t now = os::now_ns();
    if (now - last_pressure_log_ns_ > kPressureLogNs) {
      last_pressure_log_ns_ = now;
      os::log(os::Severity::kWarning,
              "over the DRAM budget (%" PRIu64 " of %" PRIu64 " pages): %s; raise dram.budget%s",
              used, capacity,
              store_ == nullptr ? "no NVMe store is configured"
                                : "the store is full or everything is pinned",
              store_ == nullptr ? " or set nvme.path" : " or nvme.size");
    }
    migrator_->grant_over_budget();
    migrator_->serve_waiting();
  }
}

bool Loop::unmap(Region& region, std::uint32_t page) {
  if (region.table.read(page).state != PageState::kResident || region.closing) return false;
  for (auto& view : region.views) {
    if (view->covers(page)) hand_->unmap(*view, page);
  }
  ++migrator_->counters().samples;
  return true;
}

// Of huge pages that are written all the while some kernels (6.12) move none: the page's engine
// loses its mapping, and who touches it waits until it has moved.
Status Loop::place(model::PageRef page, model::Memory to) {
  Region* region = by_slot_[page.region];
  if (region == nullptr) return Status(Code::kNotFound, "the region is gone");
  KV_TRY(migrator_->place(*region, page.page, to));
  if (hand_ != nullptr && sampling_ && unmap(*region, page.page))
    placer_.looked_at(page, os::now_ns());
  return {};
}

// Which pages lie in DRAM and which in CXL memory.
void Loop::plan_places() {
  const std::uint64_t now = os::now_ns();
  auto room = static_cast<std::int64_t>(dram().free_pages());
  if (dram().used_pages() > dram().capacity_pages()) {
    room = -static_cast<std::int64_t>(
        std::min(dram().used_pages() - dram().capacity_pages(), cxl().free_pages()));
  }
  placer_.plan(now, room, {.looks = hand_ != nullptr && sampling_, .moves = steps_.empty()},
               places_);
  for (const model::PageRef& page : places_.looks) {
    if (Region* region = by_slot_[page.region]; region != nullptr && unmap(*region, page.page))
      placer_.looked_at(page, now);
  }
  for (const model::PageRef& page : places_.down) steps_.push_back({page, model::Memory::kCxl});
  for (const Places::Swap& swap : places_.swaps) {
    if (swap.is_pair) steps_.push_back({swap.down, model::Memory::kCxl});
    steps_.push_back({swap.up, model::Memory::kDram});
  }
  start_places();
}

// One after the other. What goes up takes the place of what has gone down before it, if that could
// and nothing else has taken it.
void Loop::start_places() {
  while (!steps_.empty() && migrator_->places_in_flight() == 0) {
    const Step step = steps_.front();
    steps_.pop_front();
    const bool has_room = step.to == model::Memory::kCxl || dram().free_pages() > 0;
    if (!has_room || !place(step.page, step.to).ok()) placer_.stayed(step.page);
  }
}

void Loop::heed_huge_pages() {
  if (!migrator_->huge_pages_gone()) {
    os::log(os::Severity::kInfo, "there are huge pages again: what has not moved aside has them");
    return;
  }
  // What was given up for want of huge pages is there as ordinary memory; where others have the
  // pool, perhaps not all of it.
  set_capacity(model::Memory::kDram,
               std::max<std::uint64_t>(dram().used_pages() + spare_pages(), 1));
  last_shortage_ns_ = os::now_ns();
  os::log(os::Severity::kWarning,
          "the kernel has no huge page left (nr_hugepages, nr_overcommit_hugepages or "
          "hugetlb.2MB.max was lowered, or others use them): pages that come in move to ordinary "
          "memory, whose page-table edits cost 50 times more; sysctl "
          "vm.nr_overcommit_hugepages=%" PRIu64 " brings them back",
          dram().budget_pages());
}

// Moving a page aside takes its engine: one that is stopped, out of mappings or has an older
// libkvmem does not, and its threads wait. A wrong byte would be worse.
void Loop::say_who_waits() {
  const std::uint64_t now = os::now_ns();
  const std::uint64_t since = migrator_->waiting_since_ns();
  if (since == UINT64_MAX || now - since < kWaitLogNs || now - last_wait_log_ns_ < kWaitLogNs)
    return;
  last_wait_log_ns_ = now;
  os::log(os::Severity::kWarning,
          "a thread of an engine has waited for a huge page for %" PRIu64
          " s, and its libkvmem does not take an ordinary one (is it stopped, or at "
          "vm.max_map_count?): sysctl vm.nr_overcommit_hugepages=%" PRIu64 " lets it go on",
          (now - since) / 1'000'000'000, dram().budget_pages());
}

void Loop::arm_tick() {
  if (migrator_->demands_waiting() > 0 && !retry_.busy()) {
    retry_.start(ring_, kRetryNs, this,
                 [](void* self) { static_cast<Loop*>(self)->changed_ = true; });
  }
  if (!place_tick_.busy() &&
      (cxl().used_pages() > 0 ||
       (cxl().free_pages() > 0 && dram().used_pages() > dram().capacity_pages()))) {
    place_tick_.start(ring_, Placer::kTickNs, this,
                      [](void* self) { static_cast<Loop*>(self)->plan_places(); });
  }
  if (tick_.busy()) return;
  std::uint64_t after = 0;
  if (store_ != nullptr && store_->wants_tick()) after = kTickNs;
  if (after == 0 && (dram().is_short() || cxl().is_short())) after = kRecoverNs;
  if (after == 0) return;
  tick_.start(ring_, after, this, [](void* self) { static_cast<Loop*>(self)->on_tick(); });
}

void Loop::on_tick() {
  const std::uint64_t now = os::now_ns();
  if (store_ != nullptr) store_->tick(now);
  if (now - last_shortage_ns_ > kRecoverNs && (!huge_pages_gone() || spare_pages() > 0)) {
    for (const model::Memory memory : {model::Memory::kDram, model::Memory::kCxl}) {
      if (!memory_[memory].is_short()) continue;
      last_shortage_ns_ = now;
      set_capacity(memory, memory_[memory].capacity_pages() + 1);
    }
  }
  changed_ = true;
}

void Loop::set_dram_pages(std::uint64_t pages) {
  memory_[model::Memory::kDram].set_budget(pages);
  capacity_changed();
}

void Loop::set_cxl(std::uint64_t pages, std::uint64_t place_bytes_per_s) {
  if (!has_cxl()) return;
  memory_[model::Memory::kCxl].set_budget(pages);
  placer_.set_limit(static_cast<double>(place_bytes_per_s) / kPageBytes);
  capacity_changed();
}

Result<Region*> Loop::install(std::unique_ptr<Region> region) {
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<model::RegionSlot>(by_slot_.size()));
    by_slot_.push_back(nullptr);
  }
  region->slot = free_slots_.back();
  free_slots_.pop_back();
  by_slot_[region->slot] = region.get();
  regions_.push_back(std::move(region));
  Region& installed = *regions_.back();
  planner_.region_added(installed.slot, installed.page_count(), installed.origin != nullptr);
  if (has_cxl()) placer_.region_added(installed.slot, installed.page_count());
  return &installed;
}

Status Loop::make_memory(Region& region, std::uint32_t page_count) {
  const bool origin = region.origin != nullptr;
  const char* const name = origin ? "kvmem-origin" : "kvmem-region";
  const std::size_t size = static_cast<std::size_t>(page_count) << kPageShift;
  if (options_.memory_kind == os::MemoryKind::kHugeTlb) {
    KV_ASSIGN_OR_RETURN(region.memory,
                        os::SharedMemory::create(name, size, os::MemoryKind::kHugeTlb, origin));
    // While we hold some, one of them can be had for a page. Else only a try tells: overcommit may
    // be allowed and memory too fragmented.
    if (dram().used_pages() > 0 && !huge_pages_gone()) return {};
    const std::uint64_t now = os::now_ns();
    const bool tries = !huge_pages_gone() || now - huge_tried_ns_ > kRecoverNs;
    if (tries) huge_tried_ns_ = now;
    const bool is_had = tries && region.memory.populate(0, kPageBytes).ok();
    if (tries) (void)region.memory.punch(0, kPageBytes);
    if (is_had) migrator_->note_huge_page(true);
    if (is_had == huge_refused_) {
      huge_refused_ = !is_had;
      os::log(is_had ? os::Severity::kInfo : os::Severity::kWarning,
              is_had ? "there are huge pages again: new regions have them"
                     : "the kernel has no huge page, whatever it allows: new regions are ordinary "
                       "memory; set vm.nr_hugepages");
    }
    if (is_had) return {};
  }
  if (options_.memory_kind == os::MemoryKind::kHugeTlb && options_.huge_required) {
    return Status(
        Code::kNoMemory,
        "there are no huge pages, and dram.huge_pages is \"require\": set vm.nr_hugepages");
  }
  const os::MemoryKind kind = options_.memory_kind == os::MemoryKind::kHugeTlb
                                  ? os::ordinary_memory()
                                  : options_.memory_kind;
  KV_ASSIGN_OR_RETURN(region.memory, os::SharedMemory::create(name, size, kind, origin));
  return {};
}

Status Loop::make_aside(Region& region) {
  KV_CHECK(!region.has_aside() && region.memory.kind() == os::MemoryKind::kHugeTlb);
  KV_ASSIGN_OR_RETURN(region.aside,
                      os::SharedMemory::create("kvmem-aside", region.memory.size_bytes(),
                                               os::ordinary_memory(), false));
  return {};
}

Result<Region*> Loop::create_region(RegionSpec spec) {
  if (spec.page_count == 0 || spec.page_count > kPagesMax)
    return Status(Code::kInvalid, "region size");
  auto region = std::make_unique<Region>();
  next_region_id_ = (next_region_id_ + 1) & kRegionIdMask;
  region->id = next_region_id_;
  region->uid = spec.uid;
  region->session_id = spec.session_id;
  region->pid = spec.pid;
  region->tag = std::move(spec.tag);
  region->pages_max = spec.pages_max;
  const bool origin = spec.origin != nullptr;
  region->origin = std::move(spec.origin);
  KV_TRY(make_memory(*region, spec.page_count));
  KV_ASSIGN_OR_RETURN(region->table, residency::ResidencyTable::create(
                                         region->id, spec.page_count, region->memory.kind(),
                                         origin ? PageState::kOrigin : PageState::kFresh));
  return install(std::move(region));
}

Result<Region*> Loop::clone_region(Region& parent, std::uint64_t session_id) {
  RegionSpec spec;
  spec.session_id = session_id;
  spec.uid = parent.uid;
  spec.tag = parent.tag;
  spec.page_count = parent.page_count();
  spec.pages_max = parent.pages_max;
  KV_ASSIGN_OR_RETURN(Region * child, create_region(std::move(spec)));
  for (std::uint32_t page = 0; page < child->page_count(); ++page) {
    child->table.publish(page, {.flags = Residency::kInherited});
  }
  migrator_->inherit(parent, *child);
  return child;
}

Result<Region*> Loop::adopt_region(RegionSpec spec, std::uint64_t region_id, UniqueFd memory,
                                   UniqueFd table, UniqueFd aside) {
  if (spec.page_count == 0 || spec.page_count > kPagesMax)
    return Status(Code::kInvalid, "region size");
  if (region_id > kRegionIdMask || region_by_id(region_id) != nullptr) {
    return Status(Code::kInvalid, "no such region id, or it is here already");
  }
  const std::uint32_t owner = ::geteuid();
  auto region = std::make_unique<Region>();
  region->id = region_id;
  region->uid = spec.uid;
  region->session_id = spec.session_id;
  region->pid = spec.pid;
  region->tag = std::move(spec.tag);
  region->pages_max = spec.pages_max;
  region->origin = std::move(spec.origin);
  KV_ASSIGN_OR_RETURN(region->table, residency::ResidencyTable::adopt(std::move(table), region->id,
                                                                      spec.page_count, owner));
  KV_ASSIGN_OR_RETURN(region->memory, os::SharedMemory::adopt(
                                          std::move(memory),
                                          static_cast<std::size_t>(spec.page_count) << kPageShift,
                                          region->table.kind(), owner));
  if (aside && region->memory.kind() != os::MemoryKind::kHugeTlb)
    return Status(Code::kInvalid, "a second memory of a region that has ordinary memory");
  if (aside) {
    KV_ASSIGN_OR_RETURN(region->aside,
                        os::SharedMemory::adopt(std::move(aside), region->memory.size_bytes(),
                                                os::ordinary_memory(), owner));
  }
  bool has_moved = false;
  for (std::uint32_t page = 0; page < spec.page_count && !has_moved; ++page)
    has_moved = (region->table.read(page).flags & Residency::kAside) != 0;
  if (has_moved && !region->has_aside())
    return Status(Code::kInvalid, "a region without the memory that pages of it lie in");
  if (has_moved) migrator_->expect_no_huge_pages();
  Region& r = *region;
  KV_TRY(install(std::move(region)).status());
  // A run of pages that hold nothing is emptied at once: what they hold was never mapped.
  const auto punch = [&](std::uint32_t first, std::uint32_t end) {
    if (first == end) return;
    for (const os::SharedMemory* part : {&r.memory, &r.aside}) {
      if (part->fd() < 0) continue;
      (void)part->punch(static_cast<std::size_t>(first) << kPageShift,
                        static_cast<std::size_t>(end - first) << kPageShift);
    }
  };
  std::uint32_t run = 0;
  for (std::uint32_t page = 0; page < r.page_count(); ++page) {
    Residency entry = r.table.read(page);
    if (entry.state == PageState::kStored || (entry.flags & Residency::kHasCopy) != 0) {
      const tier::Key key = migrate::Migrator::key_of(r, page);
      const Status claimed = store_ == nullptr
                                 ? Status(Code::kNotFound, "the store is not configured any more")
                                 : store_->claim(key, entry.generation, entry.slot);
      if (!claimed.ok() && entry.state == PageState::kStored) {
        entry = {PageState::kLost, PageState::kFresh,
                 static_cast<std::uint8_t>(entry.flags & Residency::kAside), entry.generation, 0};
        r.table.publish(page, entry);
        ++migrator_->counters().pages_lost;
        lost(r, page, claimed.what());
      } else if (!claimed.ok()) {
        r.table.publish(page, {PageState::kResident, PageState::kFresh,
                               static_cast<std::uint8_t>(entry.flags & Residency::kAside),
                               entry.generation, 0});
      }
    }
    if (entry.state == PageState::kResident) {
      punch(run, page);
      run = page + 1;
      adopt_frame(r, page);
      planner_.filled(r.ref(page),
                      r.origin != nullptr ? model::Refetch::kRead : model::Refetch::kWrite);
    } else if (entry.state == PageState::kStored) {
      planner_.demoted(r.ref(page));
    }
  }
  punch(run, r.page_count());
  changed_ = true;
  return &r;
}

// Where a page that a daemon before this one left in memory lies, only the kernel knows.
void Loop::adopt_frame(Region& region, std::uint32_t page) {
  model::Memory memory = model::Memory::kDram;
  if (has_cxl() && cxl().nodes().has(os::node_of(region.page_data(page))))
    memory = model::Memory::kCxl;
  region.set_frame(page, memory);
  memory_[memory].take();
  placer_.arrived(region.ref(page), memory);
}

View* Loop::add_view(Region& region, View view) {
  KV_CHECK(view.page_count <= region.page_count() &&
           view.first_page <= region.page_count() - view.page_count);
  region.views.push_back(std::make_unique<View>(view));
  region.views.back()->region = &region;
  return region.views.back().get();
}

void Loop::remove_view(View& view) {
  Region& region = *view.region;
  migrator_->view_removed(view);
  std::erase_if(region.views, [&](const auto& v) { return v.get() == &view; });
  if (region.views.empty() && region.offers == 0) migrator_->close(region);
  changed_ = true;
}

void Loop::drop_offer(Region& region) {
  KV_CHECK(region.offers > 0);
  --region.offers;
  if (region.views.empty() && region.offers == 0) migrator_->close(region);
  changed_ = true;
}

void Loop::fault(View& view, const os::Fault& fault, std::uint64_t now_ns) {
  migrator_->fault(view, fault, now_ns);
  changed_ = true;
}

Status Loop::advise(Region& region, std::uint32_t first, std::uint32_t count, wire::Advice advice) {
  if (advice == wire::Advice::kPin || advice == wire::Advice::kUnpin) {
    return pin(region, first, count, advice == wire::Advice::kPin);
  }
  static constexpr std::array kAdvice = {model::Advice::kNormal,  model::Advice::kHot,
                                         model::Advice::kCold,    model::Advice::kSequential,
                                         model::Advice::kPin,     model::Advice::kUnpin,
                                         model::Advice::kPrefetch};
  planner_.advise(region.ref(first), count, kAdvice[static_cast<std::size_t>(advice)]);
  placer_.advise(region.ref(first), count, kAdvice[static_cast<std::size_t>(advice)]);
  changed_ = true;
  return {};
}

Status Loop::pin(Region& region, std::uint32_t first, std::uint32_t count, bool on) {
  if (on) {
    std::uint64_t pinned = count;
    for (const Region* r : by_slot_) {
      if (r == nullptr) continue;
      for (std::uint32_t page = 0; page < r->page_count(); ++page) {
        if (r == &region && page - first < count) continue;
        pinned += (r->table.read(page).flags & Residency::kPinned) != 0;
      }
    }
    if (pinned > dram().capacity_pages() / 2) {
      return Status(Code::kNoMemory, "more than half of the DRAM budget would be pinned");
    }
  }
  for (std::uint32_t page = first; page < first + count; ++page)
    migrator_->set_pinned(region, page, on);
  const model::Advice pin = on ? model::Advice::kPin : model::Advice::kUnpin;
  planner_.advise(region.ref(first), count, pin);
  placer_.advise(region.ref(first), count, pin);
  if (on) planner_.advise(region.ref(first), count, model::Advice::kPrefetch);
  changed_ = true;
  return {};
}

std::uint32_t Loop::promote(Region& region, std::uint32_t first, std::uint32_t count) {
  planner_.advise(region.ref(first), count, model::Advice::kPrefetch);
  changed_ = true;
  return count;
}

std::uint32_t Loop::demote(Region& region, std::uint32_t first, std::uint32_t count) {
  planner_.advise(region.ref(first), count, model::Advice::kEvict);
  changed_ = true;
  return count;
}

std::vector<std::uint64_t> Loop::recovered_sessions() const {
  std::vector<std::uint64_t> sessions;
  for (const tier::Record& record : recovered_) {
    if (sessions.empty() || sessions.back() != record.key.hi) sessions.push_back(record.key.hi);
  }
  return sessions;
}

void Loop::release_unclaimed(std::uint64_t session_id) {
  const auto of_session = [&](const tier::Record& r) { return r.key.hi == session_id; };
  for (const tier::Record& record : recovered_) {
    if (!of_session(record)) continue;
    // A claimed record belongs to the page whose entry names it.
    const Region* region = region_by_id(record.key.lo >> 24);
    const auto page = static_cast<std::uint32_t>(record.key.lo & (kPagesMax - 1));
    if (region != nullptr && page < region->page_count()) {
      const Residency entry = region->table.read(page);
      if (entry.slot == record.locator) continue;
    }
    (void)store_->release(record.key, record.generation, record.locator);
  }
  std::erase_if(recovered_, of_session);
}

Region* Loop::region_by_id(std::uint64_t region_id) const {
  for (Region* region : by_slot_) {
    if (region != nullptr && region->id == region_id) return region;
  }
  return nullptr;
}

void Loop::log_move(model::PageRef page, PageState from, PageState to, model::Reason reason) {
  if (move_log_.size() >= kMoveLogMax) move_log_.pop_front();
  move_log_.push_back({os::now_ns(), by_slot_[page.region]->id, page.page, from, to, reason});
}

void Loop::touched(model::PageRef page, model::Touch touch) {
  planner_.touched(page, touch);
  if (touch == model::Touch::kPresent) placer_.used(page, os::now_ns());
  if (touch == model::Touch::kDemand || touch == model::Touch::kFresh) {
    log_move(page, by_slot_[page.region]->table.read(page.page).state, PageState::kResident,
             touch == model::Touch::kDemand ? model::Reason::kDemand : model::Reason::kFresh);
  }
}
void Loop::fill_started(model::PageRef page, bool ahead) { planner_.fill_started(page, ahead); }
void Loop::filled(model::PageRef page, model::Refetch refetch) {
  planner_.filled(page, refetch);
  placer_.arrived(page, by_slot_[page.region]->frame_of(page.page));
  changed_ = true;
}
void Loop::fill_failed(model::PageRef page) {
  planner_.fill_failed(page);
  changed_ = true;
}
void Loop::dirtied(model::PageRef page) { planner_.write_noticed(page); }
void Loop::demote_started(model::PageRef page) { planner_.demote_started(page); }
void Loop::demoted(model::PageRef page) {
  planner_.demoted(page);
  placer_.left(page);
  changed_ = true;
}
void Loop::demote_failed(model::PageRef page) {
  planner_.demote_failed(page);
  changed_ = true;
}
void Loop::discarded(model::PageRef page) {
  planner_.discarded(page);
  placer_.left(page);
  changed_ = true;
}

void Loop::placed(model::PageRef page, model::Memory memory) {
  if (by_slot_[page.region] != nullptr) {
    log_move(page, PageState::kResident, PageState::kResident,
             memory == model::Memory::kDram ? model::Reason::kPlaceUp : model::Reason::kPlaceDown);
    placer_.moved(page, memory, os::now_ns());
  }
  start_places();
}

void Loop::place_failed(model::PageRef page, const Status& status) {
  placer_.stayed(page);
  const std::uint64_t now = os::now_ns();
  if (now - last_place_log_ns_ > kPressureLogNs) {
    last_place_log_ns_ = now;
    os::log(os::Severity::kWarning, "a page could not be moved between DRAM and CXL memory: %s",
            os::reason_of(status).c_str());
  }
  start_places();
}

void Loop::lost(const Region& region, std::uint32_t page, const char* why) {
  os::log(os::Severity::kError,
          "page %u of region %u (%s, pid %d) cannot be had: %s; the engine gets SIGBUS", page,
          region.slot,
          region.origin != nullptr ? region.origin->path().c_str() : region.tag.c_str(), region.pid,
          why);
}

void Loop::poison_in_engine(View& view, std::uint32_t page) {
  if (hand_ != nullptr) hand_->poison(view, page);
}

void Loop::needs_aside(View& view, std::uint32_t page) {
  if (hand_ != nullptr) hand_->move_aside(view, page);
}

void Loop::region_gone(Region& region) {
  const model::RegionSlot slot = region.slot;
  planner_.region_removed(slot);
  placer_.region_removed(slot);
  std::erase_if(steps_, [slot](const Step& step) { return step.page.region == slot; });
  by_slot_[slot] = nullptr;
  free_slots_.push_back(slot);
  std::erase_if(regions_, [&](const auto& r) { return r.get() == &region; });
  changed_ = true;
}

}  // namespace kvmem::loop

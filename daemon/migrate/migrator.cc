#include "migrate/migrator.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/check.h"
#include "os/clock.h"

namespace kvmem::migrate {

using model::Refetch;
using model::Touch;
using residency::PageState;
using residency::Residency;

// One page on its way. The executor, ring and store each get a part that leads back here.
struct Migrator::Move {
  enum class Stage : std::uint8_t {
    kPopulate,
    kInHand,
    kRead,
    kCopy,
    kWrite,
    kPunch,
    kAside,
    kPlace
  };
  static constexpr unsigned kReadTriesMax = 3;

  template <class Base>
  struct Part : Base {
    Move* move = nullptr;
  };

  Migrator* migrator = nullptr;
  std::uint16_t index = 0;
  Kind kind = Kind::kFill;
  Stage stage = Stage::kPopulate;
  bool ahead = false;         // fill: nobody asked
  bool takes_frame = false;   // fill: the page had none
  bool cancelled = false;     // demote: the page came back into use; the record is void
  bool discard = false;       // the engine dropped the contents meanwhile
  bool discard_from = false;  // those of the page that is copied
  bool aside = false;         // fill: moves the page there
  unsigned tries = 0;
  Region* region = nullptr;
  std::uint32_t page = 0;
  const os::SharedMemory* memory = nullptr;  // of the page; fill: where it will lie
  os::NodeSet nodes;                         // fill, place: of the frame it is to have
  std::shared_ptr<AsideRequest> request;     // aside: until its bytes are there
  Residency before;                          // aside: what the page was while it was filled
  Region* from = nullptr;  // fill of an inherited page: whose page is copied, busy until we end
  std::uint64_t started_ns = 0;
  std::uint64_t read_bytes = 0;  // origin: done so far
  Status status;                 // of `job`

  std::size_t offset() const { return static_cast<std::size_t>(page) << kPageShift; }
  std::byte* data() const { return memory->data() + offset(); }
  bool is_huge() const { return memory->kind() == os::MemoryKind::kHugeTlb; }

  Part<os::Job> job;
  Part<os::Completion> io;
  Part<tier::WriteOp> write;
  Part<tier::ReadOp> read;
  std::vector<Waiting> waiters;  // at most one a view
  std::vector<std::shared_ptr<Countdown>> countdowns;

  void await(const Waiting& w) {
    for (Waiting& known : waiters) {
      if (known.view == w.view && known.page == w.page) {
        known.write |= w.write;
        return;
      }
    }
    waiters.push_back(w);
  }
};

namespace {

constexpr std::uint64_t kIdle = ~std::uint64_t{0};
constexpr std::uint64_t kFullPauseNs = 10'000'000;
constexpr std::uint64_t kInHandNs = 20'000'000;         // where others' reads never cease
constexpr std::uint64_t kShortagePauseNs = 10'000'000;  // as the loop's kRetryNs, which wakes it
// Long enough for pages to be demoted until the pool, should it have become smaller, has one free
// again, which keeps the rest huge; short enough that an engine's peers do not give it up.
constexpr std::uint64_t kHugeWaitNs = 2'000'000'000;
constexpr std::uint64_t kHugeSteadyNs = 1'000'000'000;  // failures further apart are others
constexpr std::uint64_t kHugeRetryNs = 1'000'000'000;
constexpr std::uint64_t kAskAgainNs = 100'000'000;  // a command may be lost
constexpr std::uint64_t kAskSoonNs = 10'000'000;    // after an answer "later"
constexpr std::uint64_t kAskForgetNs = 10'000'000'000;
// The engine may be about to give up its mapping. Two milliseconds of a worker's.
constexpr unsigned kPlaceTriesMax = 8;
constexpr std::chrono::microseconds kPlaceAgain{250};
constexpr std::uint32_t kAsidesMax = 8;  // being filled at once

// No view and no child: nobody will see its pages again. Closing alone still serves children.
bool is_dead(const Region& region) { return region.closing && region.children.empty(); }

std::size_t os_page_bytes(const os::SharedMemory& memory) {
  return memory.kind() == os::MemoryKind::kHugeTlb ? kPageBytes : kOsPageBytes;
}

std::uint64_t busy_key(const Region& region, std::uint32_t page) {
  return static_cast<std::uint64_t>(region.slot) << 32 | page;
}

Residency with_flags(Residency entry, std::uint8_t set, std::uint8_t clear) {
  entry.flags = static_cast<std::uint8_t>((entry.flags & ~clear) | set);
  return entry;
}

std::uint8_t aside_of(Residency entry) { return entry.flags & Residency::kAside; }
// What a page keeps whatever becomes of it.
std::uint8_t pin_of(Residency entry) {
  return entry.flags & (Residency::kPinned | Residency::kAside);
}

bool has(Residency entry, std::uint8_t flag) { return (entry.flags & flag) != 0; }

}  // namespace

Migrator::Migrator(os::Ring& ring, os::Executor& executor, tier::MemoryNodes& memory,
                   tier::Store* store, Observer& observer, MigratorOptions options)
    : ring_(ring),
      executor_(executor),
      memory_(memory),
      store_(store),
      observer_(observer),
      options_(options) {
  const std::uint32_t count = options.fills_max + options.demotes_max + options.places_max;
  KV_CHECK(count > 0 && count < 0xffff);
  for (std::uint32_t i = 0; i < count; ++i) {
    auto move = std::make_unique<Move>();
    move->migrator = this;
    move->index = static_cast<std::uint16_t>(i);
    move->job.move = move->io.move = move->write.move = move->read.move = move.get();
    moves_.push_back(std::move(move));
    free_moves_.push_back(static_cast<std::uint16_t>(count - 1 - i));
  }
  busy_pages_.assign(count * 2, kIdle);
}

Migrator::~Migrator() { KV_CHECK(free_moves_.size() == moves_.size()); }

Migrator::Move* Migrator::move_of(const Region& region, std::uint32_t page) {
  const auto found = std::find(busy_pages_.begin(), busy_pages_.end(), busy_key(region, page));
  return found == busy_pages_.end()
             ? nullptr
             : moves_[static_cast<std::size_t>(found - busy_pages_.begin()) / 2].get();
}

Migrator::Move* Migrator::begin(Region& region, std::uint32_t page, Kind kind) {
  if (free_moves_.empty()) return nullptr;
  Move& move = *moves_[free_moves_.back()];
  free_moves_.pop_back();
  KV_CHECK(move_of(region, page) == nullptr);
  busy_pages_[move.index * 2U] = busy_key(region, page);
  ++region.moves_in_flight;
  ++in_flight(kind);
  move.kind = kind;
  move.stage = Move::Stage::kPopulate;
  move.region = &region;
  move.page = page;
  move.memory = &region.memory_of(page);
  move.from = nullptr;
  move.ahead = move.takes_frame = move.cancelled = move.aside = false;
  move.tries = 0;
  move.read_bytes = 0;
  move.status = Status{};
  move.started_ns = os::now_ns();
  return &move;
}

void Migrator::read_ended(const Move& move) {
  if (move.stage != Move::Stage::kRead) return;
  count_reads(-1);
  // At once: the disk shall not stand still while this page is mapped and the next one chosen.
  if (in_hand_ != nullptr && (reads_ == 0 || os::now_ns() - in_hand_->started_ns > kInHandNs)) {
    start_read_in_hand();
    (void)ring_.submit();  // what the kernel does not take now, the loop submits again
  }
}

// The page is where it will stay. Gives back the move, then does what waited for it.
void Migrator::end(Move& move) {
  read_ended(move);
  const bool is_filling = move.kind == Kind::kFill && move.stage != Move::Stage::kAside;
  if (move.aside) {
    if (is_filling) --asides_;
    finish(std::exchange(move.request, nullptr));
  }
  Region& region = *move.region;
  const std::uint32_t page = move.page;
  std::vector<Waiting> waiters = std::move(move.waiters);
  std::vector<std::shared_ptr<Countdown>> countdowns = std::move(move.countdowns);
  move.waiters.clear();
  move.countdowns.clear();
  if (is_filling || move.kind != Kind::kFill) --in_flight(move.kind);
  const bool discards[] = {std::exchange(move.discard, false),
                           std::exchange(move.discard_from, false)};
  busy_pages_[move.index * 2U] = busy_pages_[move.index * 2U + 1] = kIdle;
  --region.moves_in_flight;
  Region* from = std::exchange(move.from, nullptr);
  free_moves_.push_back(move.index);
  if (from != nullptr) --from->moves_in_flight;
  for (Region* dropped : {discards[0] ? &region : nullptr, discards[1] ? from : nullptr}) {
    if (dropped == nullptr || dropped->closing) continue;
    // Those that asked wait for the punch as well.
    for (const auto& countdown : countdowns) discard_page(*dropped, page, countdown);
    if (countdowns.empty()) discard_page(*dropped, page, nullptr);
  }
  for (const Waiting& w : waiters) {
    if (w.view != nullptr) serve(*w.view, w.page, w.write, w.since_ns);
  }
  for (auto& countdown : countdowns) finish(std::move(countdown));
  if (from != nullptr && from->closing) close(*from);
  if (region.closing) close(region);
}

void Migrator::finish(std::shared_ptr<Countdown> countdown) {
  if (countdown != nullptr && --countdown->remaining == 0)
    finished_.push_back(std::move(countdown));
}

// From now on somebody waits for `move`. May end it.
void Migrator::await(Move& move, const Waiting& demand) {
  move.await(demand);
  start_if_in_hand(&move);
}

// A thread that is interrupted faults again: one entry a view and page.
void Migrator::wait(const Waiting& demand) {
  if (demand.view == nullptr) return;
  for (Waiting& known : waiting_) {
    if (known.view == demand.view && known.page == demand.page) {
      known.write |= demand.write;
      return;
    }
  }
  waiting_.push_back(demand);
}

void Migrator::fault(View& view, const os::Fault& fault, std::uint64_t now_ns) {
  ++(fault.write_protected ? counters_.faults_wp
     : fault.minor         ? counters_.faults_minor
                           : counters_.faults_missing);
  Region& region = *view.region;
  ++region.faults;
  const std::uint32_t page = view.page_at(fault.address);
  if (!view.covers(page) || region.closing) return;
  const Residency entry = region.table.read(page);
  Touch touch = Touch::kDemand;
  if (const Move* move = move_of(region, page); move != nullptr && move->kind == Kind::kFill) {
    touch = Touch::kInFlight;
  } else if (entry.state == PageState::kResident || entry.state == PageState::kWriting) {
    touch = fault.write_protected ? Touch::kWrite : Touch::kPresent;
  } else if (entry.state == PageState::kFresh) {
    touch = Touch::kFresh;
  }
  observer_.touched(region.ref(page), touch);
  serve(view, page, fault.write || fault.write_protected, now_ns);
}

// Whether `region`'s page still equals its parent's, which then holds the bytes.
bool Migrator::inherits(const Region& region, std::uint32_t page) const {
  return has(region.table.read(page), Residency::kInherited);
}

// Moves the page as far as it can go toward the engine; called again when more is possible.
void Migrator::serve(View& view, std::uint32_t page, bool write, std::uint64_t since_ns) {
  Region& region = *view.region;
  const Waiting demand{&view, page, write, since_ns};
  if (region.closing || detached_) return;
  if (view.held) {
    wait(demand);
    return;
  }
  if (Move* move = move_of(region, page); move != nullptr) {
    const bool writing = move->region == &region && move->kind == Kind::kDemote &&
                         move->stage == Move::Stage::kWrite;
    if (!writing) {
      await(*move, demand);
      return;
    }
    if (!move->cancelled) cancel_write(*move);
  }
  const Residency entry = region.table.read(page);
  switch (entry.state) {
    case PageState::kResident:
      if (write && !settle_children(region, page, demand)) return;
      if (write && has(entry, Residency::kHasCopy)) drop_copy(region, page);
      map_resident(view, page, write, since_ns);
      return;
    case PageState::kFresh:
    case PageState::kStored:
    case PageState::kOrigin:
      if (!start_fill(region, page, &demand, false)) wait(demand);
      return;
    case PageState::kLost:
      poison(view, page);
      return;
    case PageState::kWriting:
    case PageState::kFilling:
      KV_CHECK(!"a page in motion without a move");
  }
}

void Migrator::map_resident(View& view, std::uint32_t page, bool write, std::uint64_t since_ns) {
  Region& region = *view.region;
  Residency entry = region.table.read(page);
  bool guard = !write && (has(entry, Residency::kHasCopy) ||
                          std::any_of(region.children.begin(), region.children.end(),
                                      [&](Region* child) { return inherits(*child, page); }));
  if (guard && !write_protect_on_map_) {
    // The kernel cannot map protected: map as for a write.
    serve(view, page, true, since_ns);
    return;
  }
  const std::uint64_t address = view.address_of(page);
  if (write) (void)os::write_protect(view.userfault, address, kPageBytes, false);
  const Status status = os::map_pages(view.userfault, address, kPageBytes,
                                      os_page_bytes(region.memory_of(page)), guard);
  if (status.code() == Code::kUnsupported && guard) {
    write_protect_on_map_ = false;
    serve(view, page, true, since_ns);
    return;
  }
  if (status.code() == Code::kNotFound) {
    // The engine emptied the memfd page itself; what is gone reads as zeroes, as it asked for.
    const Waiting demand{&view, page, true, since_ns};
    if (has(entry, Residency::kHasCopy)) drop_copy(region, page);
    Move* move = begin(region, page, Kind::kFill);
    if (move == nullptr) {
      wait(demand);
      return;
    }
    region.table.publish(
        page, {PageState::kFilling, PageState::kResident, pin_of(entry), entry.generation, 0});
    move->await(demand);
    start_populate(*move);
    return;
  }
  if (!status.ok() && status.code() != Code::kPeerGone)
    (void)os::wake(view.userfault, address, kPageBytes);
}

bool Migrator::start_fill(Region& region, std::uint32_t page, const Waiting* demand, bool ahead,
                          std::shared_ptr<AsideRequest>* aside) {
  if (detached_) return false;
  Residency entry = region.table.read(page);
  // Who holds the bytes of an inherited page: the nearest ancestor that has its own.
  Region* from = nullptr;
  if (has(entry, Residency::kInherited)) {
    from = region.parent;
    while (from != nullptr && inherits(*from, page)) from = from->parent;
    if (from == nullptr) {
      lose(region, page, "the parent it was forked from did not outlive the daemon");
      if (demand != nullptr) poison(*demand->view, page);
      return true;
    }
    if (Move* busy = move_of(*from, page); busy != nullptr) {
      start_if_in_hand(busy);
      return false;  // tried again when that move has ended
    }
    const PageState source = from->table.read(page).state;
    if (source == PageState::kFresh) {
      from = nullptr;
      entry = with_flags(entry, 0, Residency::kInherited);
      region.table.publish(page, entry);
    } else if (source == PageState::kLost) {
      lose(region, page, "its parent's page is lost");
      if (demand != nullptr) poison(*demand->view, page);
      return true;
    }
  }
  if (entry.state == PageState::kFresh && region.table.used_count() >= region.pages_limit()) {
    if (ahead) return false;
    lose(region, page, "the engine writes more than it said it would (kvmem_pool's bytes_max)");
    if (demand != nullptr) poison(*demand->view, page);
    return true;
  }
  // (Aside: there is one, or there was none to be made when it was asked for.)
  if (memory_.free_pages() == 0 && aside == nullptr) {
    if (over_budget_ == 0 || ahead) return false;
  }
  if (fills_ >= options_.fills_max) return false;
  if (short_until_ns_ != 0 && os::now_ns() < short_until_ns_) return false;
  if (aside == nullptr && must_go_aside(region, entry)) {
    if (!ahead) ask_aside(region, page, demand);
    return false;
  }
  Move* move = begin(region, page, Kind::kFill);
  if (move == nullptr) return false;
  if (memory_.free_pages() == 0) {
    if (over_budget_ > 0) --over_budget_;
    ++counters_.frames_over_budget;
  }
  if (aside != nullptr) {
    move->aside = true;
    move->memory = &region.aside;
    move->request = std::move(*aside);
    ++asides_;
  }
  take_frame(region, page);
  move->takes_frame = true;
  move->ahead = ahead;
  move->from = from;
  if (from != nullptr) {
    busy_pages_[move->index * 2U + 1] = busy_key(*from, page);
    ++from->moves_in_flight;
  }
  if (demand != nullptr) move->await(*demand);
  region.table.publish(
      page, {PageState::kFilling, entry.state, entry.flags, entry.generation, entry.slot});
  observer_.fill_started(region.ref(page), move->ahead);
  start_populate(*move);
  return true;
}

void Migrator::start_populate(Move& move) {
  move.stage = Move::Stage::kPopulate;
  move.nodes = memory_.nodes(move.region->frame_of(move.page));
  move.job.work = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    m.status = m.memory->populate(m.offset(), kPageBytes, m.nodes);
  };
  move.job.done = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    m.migrator->populated(m);
  };
  executor_.execute(&move.job);
}

void Migrator::populated(Move& move) {
  // (A CXL node without huge pages is a node that is full.)
  if (move.is_huge() && move.region->frame_of(move.page) == model::Memory::kDram)
    note_huge_page(move.status.ok());
  if (!move.status.ok()) {
    // Whatever the kernel says, nothing has been read: the source still has the bytes.
    fill_failed(move, Status(Code::kNoMemory, move.status.what(), move.status.detail()));
    return;
  }
  Region& region = *move.region;
  if (is_dead(region) || detached_) {
    fill_failed(move, Status(Code::kCancelled, "region closed"));
    return;
  }
  if (move.from != nullptr && move.from->table.read(move.page).state == PageState::kResident) {
    move.stage = Move::Stage::kCopy;
    move.job.work = [](os::Job* job) {
      Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
      std::memcpy(m.data(), m.from->page_data(m.page), kPageBytes);
    };
    move.job.done = [](os::Job* job) {
      Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
      ++m.migrator->counters_.pages_forked;
      m.migrator->filled(m);
    };
    executor_.execute(&move.job);
    return;
  }
  if (move.ahead && move.waiters.empty() && reads_ > 0) {
    start_read_in_hand();
    move.stage = Move::Stage::kInHand;
    in_hand_ = &move;
    return;
  }
  start_read(move);
}

void Migrator::start_if_in_hand(const Move* move) {
  if (move == in_hand_) start_read_in_hand();
}

void Migrator::start_read_in_hand() {
  if (Move* move = std::exchange(in_hand_, nullptr); move != nullptr) start_read(*move);
}

void Migrator::start_read(Move& move) {
  Region& region = *move.region;
  if (is_dead(region) || detached_) {
    fill_failed(move, Status(Code::kCancelled, "region closed"));
    return;
  }
  switch (move.from != nullptr ? move.from->table.read(move.page).state
                               : region.table.read(move.page).source) {
    case PageState::kOrigin:
      read_origin(move);
      return;
    case PageState::kStored:
      read_store(move);
      return;
    default:
      filled(move);
  }
}

void Migrator::count_reads(int change) {
  const std::uint64_t now = os::now_ns();
  if (reads_ > 0) {
    counters_.read_busy_ns += now - reads_changed_ns_;
    counters_.read_depth_ns += (now - reads_changed_ns_) * reads_;
  }
  reads_changed_ns_ = now;
  reads_ += static_cast<std::uint32_t>(change);
}

void Migrator::read_origin(Move& move) {
  Region& region = *move.region;
  const std::uint64_t offset = static_cast<std::uint64_t>(move.page) << kPageShift;
  if (region.origin->bytes_at(offset, kPageBytes) == 0) {  // beyond the end of the file
    filled(move);
    return;
  }
  if (move.stage != Move::Stage::kRead) count_reads(1);
  move.stage = Move::Stage::kRead;
  move.io.run = [](os::Completion* io, int result, std::uint32_t) {
    Move& m = *static_cast<Move::Part<os::Completion>*>(io)->move;
    m.migrator->origin_read(m, result);
  };
  ring_.prepare(&move.io, [&](io_uring_sqe* sqe) {
    // Whole pages: direct I/O past the end of the file ends early and leaves the zeroes.
    io_uring_prep_read(sqe, region.origin->fd(), move.data() + move.read_bytes,
                       static_cast<unsigned>(kPageBytes - move.read_bytes),
                       offset + move.read_bytes);
  });
}

void Migrator::origin_read(Move& move, int result) {
  Region& region = *move.region;
  const std::uint64_t offset = static_cast<std::uint64_t>(move.page) << kPageShift;
  const std::uint64_t want = region.origin->bytes_at(offset, kPageBytes);
  if (result > 0) {
    move.read_bytes += static_cast<std::uint64_t>(result);
    counters_.origin_read_bytes += static_cast<std::uint64_t>(result);
  }
  if (move.read_bytes >= want) {
    filled(move);
    return;
  }
  const bool goes_on = result > 0 && is_aligned(move.read_bytes, kOsPageBytes);
  if (!region.closing &&
      (goes_on || result == -EINTR || result == -EAGAIN || ++move.tries < Move::kReadTriesMax)) {
    move.read_bytes = align_down(move.read_bytes, kOsPageBytes);
    read_origin(move);
    return;
  }
  ++counters_.origin_read_errors;
  read_done(move, result < 0 ? Status::from_errno("reading the origin file", -result)
                             : Status(Code::kCorrupt, "the origin file has become shorter"));
}

void Migrator::read_store(Move& move) {
  Region& owner = move.from != nullptr ? *move.from : *move.region;
  if (move.stage != Move::Stage::kRead) count_reads(1);
  move.stage = Move::Stage::kRead;
  move.read.done = [](tier::ReadOp* op, Status status) {
    Move& m = *static_cast<Move::Part<tier::ReadOp>*>(op)->move;
    if (status.ok()) m.migrator->counters_.store_read_bytes += kPageBytes;
    // What the device says once it may not say again; what does not verify was read twice already.
    const bool passing = status.code() == Code::kErrno || status.code() == Code::kBusy;
    if (passing && ++m.tries < Move::kReadTriesMax) {
      m.migrator->read_store(m);
    } else {
      m.migrator->read_done(m, status);
    }
  };
  move.read.key = key_of(owner, move.page);
  const Residency entry = owner.table.read(move.page);
  move.read.generation = entry.generation;
  move.read.locator = entry.slot;
  move.read.page = move.data();
  const Status status =
      store_ != nullptr ? store_->read(&move.read) : Status(Code::kNotFound, "no store");
  if (!status.ok()) read_done(move, status);
}

void Migrator::read_done(Move& move, Status status) {
  if (status.ok()) {
    filled(move);
  } else {
    fill_failed(move, status);
  }
}

// Back to the source, which still holds the bytes; or lost, when it does not.
void Migrator::fill_failed(Move& move, Status status) {
  Region& region = *move.region;
  const Residency entry = region.table.read(move.page);
  if (move.takes_frame) {
    (void)move.memory->punch(move.offset(), kPageBytes);
    give_back_frame(region, move.page);
  }
  if (move.request != nullptr) move.request->status = status;
  region.table.publish(
      move.page, {entry.source, PageState::kFresh, entry.flags, entry.generation, entry.slot});
  observer_.fill_failed(region.ref(move.page));
  if (status.code() == Code::kCancelled) {
    // The region or the daemon goes; nobody waits.
  } else if (status.code() == Code::kNoMemory) {
    ++counters_.populate_failures;
    if (!(move.is_huge() && huge_gone_)) {  // else it goes aside when it is tried again
      shortage_[static_cast<std::size_t>(region.frame_of(move.page))] = true;
      short_until_ns_ = os::now_ns() + kShortagePauseNs;
    }
    // Its waiters try again when a page has been punched, or the pause is over.
    for (const Waiting& w : move.waiters) wait(w);
    move.waiters.clear();
  } else if (entry.source == PageState::kOrigin) {
    // As a mapping of the file would: SIGBUS for this access.
    observer_.lost(region, move.page, status.what());
    for (const Waiting& w : move.waiters) {
      if (w.view != nullptr) poison(*w.view, move.page);
    }
    move.waiters.clear();
  } else {
    if (entry.source == PageState::kStored || move.from != nullptr) ++counters_.store_corrupt;
    lose(region, move.page, status.what());
  }
  end(move);
}

void Migrator::filled(Move& move) {
  Region& region = *move.region;
  const Residency entry = region.table.read(move.page);
  const bool demanded_write = std::any_of(move.waiters.begin(), move.waiters.end(),
                                          [](const Waiting& w) { return w.write; });
  const bool stored = entry.source == PageState::kStored;
  const bool keeps_copy = stored && !demanded_write && write_protect_on_map_;
  // (Nobody would say that a page of a closing region is mapped, children or not.)
  if (is_dead(region) || detached_ || (move.aside && region.closing)) {
    fill_failed(move, Status(Code::kCancelled, "region closed"));
    return;
  }
  if (move.aside) {
    // An engine may stop before it has mapped the page: from here it holds up nobody else's.
    --asides_;
    --fills_;
    // The record stays until the engine has mapped the page; a daemon that takes over before that
    // does not find the record named by any page, and releases it.
    move.before = entry;
    read_ended(move);
    move.stage = Move::Stage::kAside;
    region.table.publish(move.page, {PageState::kResident, PageState::kFresh,
                                     static_cast<std::uint8_t>(pin_of(entry) | Residency::kAside),
                                     entry.generation, 0});
    move.request->status = Status{};
    finish(std::exchange(move.request, nullptr));
    return;
  }
  // Published before it can be mapped: from here the memfd page is the truth.
  region.table.publish(
      move.page, {PageState::kResident, PageState::kFresh,
                  static_cast<std::uint8_t>(pin_of(entry) | (keeps_copy ? Residency::kHasCopy : 0)),
                  entry.generation, keeps_copy ? entry.slot : 0});
  if (stored && !keeps_copy) release_record(region, move.page, entry);
  if (entry.source == PageState::kFresh) {
    ++counters_.fresh_pages;
  } else {
    ++counters_.promotions;
  }
  if (move.ahead) ++counters_.prefetches;
  // A fresh page counts as dirty: whether the engine only read it is not tracked.
  observer_.filled(region.ref(move.page),
                   region.origin != nullptr || keeps_copy ? Refetch::kRead : Refetch::kWrite);
  count_waits(move, entry.source);
  end(move);  // maps it for those that wait
}

void Migrator::count_waits(const Move& move, PageState source) {
  const std::uint64_t now = os::now_ns();
  for (const Waiting& w : move.waiters) {
    if (w.view == nullptr || w.view->region != move.region) continue;
    (source == PageState::kFresh ? first_touch_us_ : restore_us_).add((now - w.since_ns) / 1000);
  }
}

// A page of `region` is about to be written: children that still share it get theirs first.
bool Migrator::settle_children(Region& region, std::uint32_t page, const Waiting& then) {
  for (Region* child : region.children) {
    if (!inherits(*child, page) || is_dead(*child)) continue;
    if (move_of(*child, page) == nullptr && !start_fill(*child, page, nullptr, false)) {
      wait(then);
      return false;
    }
    // Fresh by now, if nobody ever wrote it; else its copy is under way.
    if (Move* move = move_of(*child, page); move != nullptr) {
      await(*move, then);
      return false;
    }
  }
  return true;
}

Status Migrator::promote(Region& region, std::uint32_t page) {
  const Residency entry = region.table.read(page);
  if (region.closing || move_of(region, page) != nullptr) return Status(Code::kBusy, "moving");
  if (entry.state != PageState::kStored && entry.state != PageState::kOrigin) {
    return Status(Code::kBusy, "nothing to bring in");
  }
  return start_fill(region, page, nullptr, true) ? Status{} : Status(Code::kBusy, "no frame free");
}

Status Migrator::demote(Region& region, std::uint32_t page) {
  const Residency entry = region.table.read(page);
  if (is_dead(region) || move_of(region, page) != nullptr || entry.state != PageState::kResident) {
    return Status(Code::kBusy, "moving or not resident");
  }
  if (has(entry, Residency::kPinned)) return Status(Code::kBusy, "pinned");
  if (detached_) return Status(Code::kBusy, "stopping");
  // The record's key is its session's, and a forked child's is not known before it claims.
  if (region.origin == nullptr && region.session_id == 0) return Status(Code::kBusy, "not claimed");
  if (demotes_ >= options_.demotes_max) return Status(Code::kBusy, "enough in flight");
  const bool copied = has(entry, Residency::kHasCopy);
  if (region.origin != nullptr || copied) {
    Move* move = begin(region, page, Kind::kDrop);
    if (move == nullptr) return Status(Code::kBusy, "enough in flight");
    observer_.demote_started(region.ref(page));
    region.table.publish(page, {copied ? PageState::kStored : PageState::kOrigin, PageState::kFresh,
                                aside_of(entry), entry.generation, entry.slot});
    ++counters_.pages_dropped;
    start_punch(*move);
    return {};
  }
  if (store_ == nullptr) return Status(Code::kUnsupported, "no NVMe store is configured");
  if (full_until_ns_ != 0 && os::now_ns() < full_until_ns_)
    return Status(Code::kBusy, "the store is full");
  Move* move = begin(region, page, Kind::kDemote);
  if (move == nullptr) return Status(Code::kBusy, "enough in flight");
  observer_.demote_started(region.ref(page));
  const auto generation =
      static_cast<std::uint16_t>((entry.generation + 1U) & Residency::kGenerationMask);
  region.table.publish(page, {PageState::kWriting, PageState::kFresh, entry.flags, generation, 0});
  for (auto& view : region.views) {
    if (!view->covers(page)) continue;
    const Status status =
        os::write_protect(view->userfault, view->address_of(page), kPageBytes, true);
    if (!status.ok() && status.code() != Code::kPeerGone) {
      region.table.publish(page, entry);
      observer_.demote_failed(region.ref(page));
      end(*move);
      return status;
    }
  }
  move->stage = Move::Stage::kWrite;
  move->write.done = [](tier::WriteOp* op, Status status) {
    Move& m = *static_cast<Move::Part<tier::WriteOp>*>(op)->move;
    m.migrator->written(m, status);
  };
  move->write.key = key_of(region, page);
  move->write.generation = generation;
  move->write.kind = tier::RecordKind::kEphemeral;
  move->write.page = move->data();
  if (const Status status = store_->write(&move->write); !status.ok()) {
    write_failed(*move, status);
    return status;
  }
  return {};
}

// The engine came back to a page that is being written: it stays.
void Migrator::cancel_write(Move& move) {
  Region& region = *move.region;
  move.cancelled = true;
  ++counters_.writes_cancelled;
  const Residency entry = region.table.read(move.page);
  region.table.publish(
      move.page, {PageState::kResident, PageState::kFresh, pin_of(entry), entry.generation, 0});
  observer_.demote_failed(region.ref(move.page));
}

void Migrator::written(Move& move, Status status) {
  Region& region = *move.region;
  if (status.ok()) counters_.store_write_bytes += kPageBytes;
  if (move.cancelled || is_dead(region) || detached_) {
    if (status.ok())
      (void)store_->release(move.write.key, move.write.generation, move.write.locator);
    if (!move.cancelled) {
      region.table.publish(move.page, {PageState::kResident, PageState::kFresh,
                                       aside_of(region.table.read(move.page)),
                                       static_cast<std::uint16_t>(move.write.generation), 0});
      observer_.demote_failed(region.ref(move.page));
    }
    end(move);
    return;
  }
  if (!status.ok()) {
    write_failed(move, status);
    return;
  }
  region.table.publish(move.page,
                       {PageState::kStored, PageState::kFresh, pin_of(region.table.read(move.page)),
                        static_cast<std::uint16_t>(move.write.generation), move.write.locator});
  start_punch(move);
}

// The page stays where it is. It also stays protected: the next write faults and finds out whether
// a child still shares it.
void Migrator::write_failed(Move& move, const Status& status) {
  ++counters_.store_write_errors;
  if (status.code() == Code::kNoSpace) full_until_ns_ = os::now_ns() + kFullPauseNs;
  cancel_write(move);
  --counters_.writes_cancelled;
  end(move);
}

void Migrator::start_punch(Move& move) {
  move.stage = Move::Stage::kPunch;
  move.job.work = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    m.status = m.memory->punch(m.offset(), kPageBytes);
  };
  move.job.done = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    m.migrator->punched(m);
  };
  executor_.execute(&move.job);
}

void Migrator::punched(Move& move) {
  KV_CHECK(move.status.ok());  // punching sealed memory of ours cannot fail
  short_until_ns_ = 0;         // there is memory again
  Region& region = *move.region;
  give_back_frame(region, move.page);
  if (move.kind == Kind::kDiscard) {
    observer_.discarded(region.ref(move.page));
  } else {
    ++counters_.demotions;
    observer_.demoted(region.ref(move.page));
  }
  end(move);
}

void Migrator::take_frame(Region& region, std::uint32_t page) {
  const model::Memory memory = memory_.next();
  region.set_frame(page, memory);
  memory_[memory].take();
}

void Migrator::move_frame(Region& region, std::uint32_t page, model::Memory to) {
  memory_[region.frame_of(page)].give_back();
  region.set_frame(page, to);
  memory_[to].take();
}

void Migrator::give_back_frame(const Region& region, std::uint32_t page) {
  memory_[region.frame_of(page)].give_back();
}

Status Migrator::place(Region& region, std::uint32_t page, model::Memory to) {
  const Residency entry = region.table.read(page);
  if (region.closing || move_of(region, page) != nullptr || entry.state != PageState::kResident) {
    return Status(Code::kBusy, "moving or not resident");
  }
  if (region.frame_of(page) == to) return Status(Code::kBusy, "there already");
  if (has(entry, Residency::kPinned) && to != model::Memory::kDram)
    return Status(Code::kBusy, "pinned");
  if (detached_ || places_ >= options_.places_max) return Status(Code::kBusy, "enough in flight");
  Move* move = begin(region, page, Kind::kPlace);
  if (move == nullptr) return Status(Code::kBusy, "enough in flight");
  move->stage = Move::Stage::kPlace;
  move->nodes = memory_[to].nodes();
  move_frame(region, page, to);
  move->job.work = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    for (unsigned tries = 0; tries < kPlaceTriesMax; ++tries) {
      if (tries > 0) std::this_thread::sleep_for(kPlaceAgain);
      m.status = m.memory->move_to(m.offset(), kPageBytes, m.nodes);
      if (m.status.code() != Code::kBusy) break;
    }
  };
  move->job.done = [](os::Job* job) {
    Move& m = *static_cast<Move::Part<os::Job>*>(job)->move;
    m.migrator->place_done(m);
  };
  executor_.execute(&move->job);
  return {};
}

// The table never said otherwise: the bytes are where it says, at either end.
void Migrator::place_done(Move& move) {
  Region& region = *move.region;
  const model::PageRef page = region.ref(move.page);
  const Status status = move.status;
  const model::Memory to = region.frame_of(move.page);
  if (status.ok()) {
    ++(to == model::Memory::kDram ? counters_.pages_to_dram : counters_.pages_to_cxl);
  } else {
    move_frame(region, move.page,
               to == model::Memory::kDram ? model::Memory::kCxl : model::Memory::kDram);
    ++counters_.place_failures;
    if (status.code() == Code::kNoMemory) shortage_[static_cast<std::size_t>(to)] = true;
  }
  end(move);  // `region` may be no more
  if (status.ok()) {
    observer_.placed(page, to);
  } else {
    observer_.place_failed(page, status);
  }
}

void Migrator::release_record(const Region& region, std::uint32_t page, Residency entry) {
  if (store_ != nullptr) (void)store_->release(key_of(region, page), entry.generation, entry.slot);
  full_until_ns_ = 0;
}

void Migrator::drop_copy(Region& region, std::uint32_t page) {
  const Residency entry = region.table.read(page);
  region.table.publish(
      page, {PageState::kResident, PageState::kFresh, pin_of(entry), entry.generation, 0});
  release_record(region, page, entry);
  observer_.dirtied(region.ref(page));
}

void Migrator::discard(Region& region, std::uint32_t first, std::uint32_t count,
                       const std::shared_ptr<Countdown>& countdown) {
  for (std::uint32_t page = first; page < first + count; ++page)
    discard_page(region, page, countdown);
}

void Migrator::discard_page(Region& region, std::uint32_t page,
                            const std::shared_ptr<Countdown>& countdown) {
  const auto wait_for = [&](Move& move) {
    if (countdown == nullptr) return;
    ++countdown->remaining;
    move.countdowns.push_back(countdown);
  };
  if (Move* move = move_of(region, page); move != nullptr) {
    (move->region == &region ? move->discard : move->discard_from) = true;  // done at its end
    wait_for(*move);
    start_if_in_hand(move);
    return;
  }
  const Residency entry = region.table.read(page);
  // A page that was never touched may stand for its own parent's.
  if (entry.state != PageState::kFresh || has(entry, Residency::kInherited)) {
    if (!settle_children(region, page, Waiting{nullptr, page, false, 0})) {
      if (countdown != nullptr) ++countdown->remaining;
      discards_.push_back({&region, page, countdown});
      return;
    }
  }
  if (entry.state == PageState::kStored || has(entry, Residency::kHasCopy)) {
    release_record(region, page, entry);
  }
  region.table.publish(page,
                       {PageState::kFresh, PageState::kFresh, pin_of(entry), entry.generation, 0});
  if (entry.state != PageState::kResident) {
    if (entry.state != PageState::kFresh) observer_.discarded(region.ref(page));
    return;
  }
  Move* move = begin(region, page, Kind::kDiscard);
  if (move == nullptr) {  // every move is taken: on the spot
    (void)region.memory_of(page).punch(static_cast<std::size_t>(page) << kPageShift, kPageBytes);
    give_back_frame(region, page);
    observer_.discarded(region.ref(page));
    return;
  }
  wait_for(*move);
  start_punch(*move);
}

void Migrator::set_pinned(Region& region, std::uint32_t page, bool pinned) {
  const Residency entry = region.table.read(page);
  region.table.publish(page, pinned ? with_flags(entry, Residency::kPinned, 0)
                                    : with_flags(entry, 0, Residency::kPinned));
}

Status Migrator::hold(View& view) {
  const Status status =
      os::write_protect(view.userfault, view.address,
                        static_cast<std::uint64_t>(view.page_count) << kPageShift, true);
  if (status.ok() || status.code() == Code::kPeerGone) view.held = true;
  return view.held ? Status{} : status;
}

void Migrator::release(View& view) { view.held = false; }

void Migrator::inherit(Region& parent, Region& child) {
  child.parent = &parent;
  parent.children.push_back(&child);
}

void Migrator::poison(View& view, std::uint32_t page) {
  // A page that was protected when it was punched leaves markers, which poison does not replace.
  (void)os::write_protect(view.userfault, view.address_of(page), kPageBytes, false);
  const Status status = os::poison(view.userfault, view.address_of(page), kPageBytes);
  if (status.code() == Code::kUnsupported) observer_.poison_in_engine(view, page);
}

void Migrator::lose(Region& region, std::uint32_t page, const char* why) {
  const Residency entry = region.table.read(page);
  if (entry.state == PageState::kStored) release_record(region, page, entry);
  region.table.publish(page,
                       {PageState::kLost, PageState::kFresh, pin_of(entry), entry.generation, 0});
  ++counters_.pages_lost;
  observer_.lost(region, page, why);
}

void Migrator::view_removed(View& view) {
  std::erase_if(waiting_, [&](const Waiting& w) { return w.view == &view; });
  for (auto& move : moves_) {
    for (Waiting& w : move->waiters) {
      if (w.view == &view) w.view = nullptr;
    }
  }
}

void Migrator::detach() {
  // Published already, whether or not the engine has mapped it yet.
  for (auto& move : moves_) {
    if (busy_pages_[move->index * 2U] != kIdle && move->stage == Move::Stage::kAside) {
      move->waiters.clear();
      end_aside(*move);
    }
  }
  detached_ = true;
  waiting_.clear();
  discards_.clear();
  finished_.clear();
}

void Migrator::close(Region& region) {
  if (detached_) return;
  region.closing = true;
  for (Discard& d : discards_) {
    if (d.region == &region) finish(std::move(d.countdown));
  }
  std::erase_if(discards_, [&](const Discard& d) { return d.region == &region; });
  for (auto& move : moves_) {
    if (busy_pages_[move->index * 2U] != kIdle && move->region == &region &&
        move->stage == Move::Stage::kAside) {
      end_aside(*move);  // comes back here
      return;
    }
  }
  if (!region.children.empty()) return;  // they still live on its pages
  for (auto& move : moves_) {
    const bool busy = busy_pages_[move->index * 2U] != kIdle;
    if (busy && move->region == &region && move->kind == Kind::kDemote &&
        move->stage == Move::Stage::kWrite && !move->cancelled) {
      cancel_write(*move);
    }
  }
  if (region.moves_in_flight > 0) return;
  for (std::uint32_t page = 0; page < region.page_count(); ++page) {
    const Residency entry = region.table.read(page);
    if (entry.state == PageState::kResident) give_back_frame(region, page);
    if (entry.state == PageState::kStored || has(entry, Residency::kHasCopy)) {
      release_record(region, page, entry);
    }
  }
  Region* parent = region.parent;
  if (parent != nullptr) std::erase(parent->children, &region);
  observer_.region_gone(region);  // `region` is no more
  if (parent != nullptr && parent->closing) close(*parent);
}

bool Migrator::must_go_aside(const Region& region, Residency entry) {
  if (!huge_gone_ || aside_of(entry) != 0 || region.memory.kind() != os::MemoryKind::kHugeTlb) {
    return false;
  }
  const std::uint64_t now = os::now_ns();
  if (now - huge_tried_ns_ < kHugeRetryNs) return true;
  huge_tried_ns_ = now;  // this one tells whether there are huge pages again
  return false;
}

void Migrator::ask_aside(Region& region, std::uint32_t page, const Waiting* demand) {
  const std::uint64_t now = os::now_ns();
  const auto known = std::find_if(region.asks.begin(), region.asks.end(),
                                  [&](const Region::Ask& ask) { return ask.page == page; });
  if (known != region.asks.end() && now < known->again_ns) return;
  // An engine moves a page wherever it has it. A fork's child that has not claimed its region has
  // no view yet, and is asked when it has.
  View* view = demand != nullptr ? demand->view : nullptr;
  for (auto it = region.views.begin(); view == nullptr && it != region.views.end(); ++it) {
    if ((*it)->covers(page)) view = it->get();
  }
  if (view == nullptr) return;
  // What a child has not copied yet must not change, and is not protected where it goes.
  if (!settle_children(region, page, Waiting{nullptr, page, false, 0})) return;
  std::erase_if(region.asks, [&](const Region::Ask& ask) {
    return ask.page == page || now > ask.again_ns + kAskForgetNs;
  });
  region.asks.push_back({page, now + kAskAgainNs, memory_.free_pages() == 0});
  observer_.needs_aside(*view, page);
}

void Migrator::note_huge_page(bool is_had) {
  const std::uint64_t now = os::now_ns();
  if (is_had) {
    huge_short_since_ns_ = 0;
    huge_changed_ |= huge_gone_;
    huge_gone_ = false;
    return;
  }
  if (huge_short_since_ns_ == 0 || now - huge_failed_ns_ > kHugeSteadyNs) {
    if (!huge_gone_) huge_short_since_ns_ = now;
  }
  huge_failed_ns_ = now;
  if (huge_gone_ || now - huge_short_since_ns_ < kHugeWaitNs) return;
  huge_gone_ = huge_changed_ = true;
  huge_tried_ns_ = now;
}

void Migrator::expect_no_huge_pages() {
  if (huge_gone_) return;
  huge_gone_ = huge_changed_ = true;
  huge_tried_ns_ = 0;  // the next one tells
}

void Migrator::move_aside(Region& region, std::uint32_t page,
                          std::shared_ptr<AsideRequest> request) {
  KV_CHECK(region.has_aside() && region.origin == nullptr);
  // Only what was asked for.
  const auto asked = std::find_if(region.asks.begin(), region.asks.end(),
                                  [&](const Region::Ask& ask) { return ask.page == page; });
  const bool was_asked = asked != region.asks.end();
  const bool has_frame = memory_.free_pages() > 0 || (was_asked && asked->over_budget);
  if (was_asked) region.asks.erase(asked);
  const Residency entry = region.table.read(page);
  request->remaining = 1;
  request->status = Status(Code::kBusy, "the page is moving, or is in memory");
  const bool is_absent = entry.state == PageState::kFresh || entry.state == PageState::kStored;
  const bool may = was_asked && has_frame && !region.closing && !detached_ &&
                   asides_ < kAsidesMax && aside_of(entry) == 0 && is_absent &&
                   move_of(region, page) == nullptr &&
                   settle_children(region, page, Waiting{nullptr, page, false, 0});
  if (!may || !start_fill(region, page, nullptr, false, &request)) finish(std::move(request));
  // Not started, and not to be: the page is lost.
  if (request != nullptr) finish(std::move(request));
  if (was_asked && move_of(region, page) == nullptr)
    region.asks.push_back({page, os::now_ns() + kAskSoonNs, false});
}

// The engine has the page mapped there; or nobody will ever know.
void Migrator::end_aside(Move& move) {
  Region& region = *move.region;
  const bool stored = move.before.source == PageState::kStored;
  if (stored) release_record(region, move.page, move.before);
  ++(move.before.source == PageState::kFresh ? counters_.fresh_pages : counters_.promotions);
  ++counters_.pages_aside;
  count_waits(move, move.before.source);
  observer_.filled(region.ref(move.page), Refetch::kWrite);
  end(move);
}

Status Migrator::moved_aside(Region& region, std::uint32_t page, bool is_mapped) {
  Move* move = move_of(region, page);
  if (move == nullptr || move->region != &region || move->stage != Move::Stage::kAside) {
    return Status(Code::kNotFound, "the page does not wait for that");
  }
  if (is_mapped) {
    end_aside(*move);
    return {};
  }
  // Nobody has seen its bytes there: where they came from they still are.
  region.table.publish(page, {move->before.source, PageState::kFresh, move->before.flags,
                              move->before.generation, move->before.slot});
  (void)move->memory->punch(move->offset(), kPageBytes);
  give_back_frame(region, page);
  observer_.fill_failed(region.ref(page));
  for (const Waiting& w : move->waiters) wait(w);
  move->waiters.clear();
  region.asks.push_back(
      {page, os::now_ns() + kHugeRetryNs, false});  // before that nothing will differ
  end(*move);
  return {};
}

void Migrator::forget_demands(View& view, std::uint32_t first, std::uint32_t count) {
  std::erase_if(waiting_,
                [&](const Waiting& w) { return w.view == &view && w.page - first < count; });
}

std::uint64_t Migrator::waiting_since_ns() const {
  std::uint64_t since = UINT64_MAX;
  for (const Waiting& w : waiting_) since = std::min(since, w.since_ns);
  return since;
}

void Migrator::grant_over_budget() { over_budget_ = waiting_.size() + discards_.size(); }

void Migrator::serve_waiting() {
  for (std::size_t left = waiting_.size(); left > 0; --left) {
    const Waiting w = waiting_.front();
    waiting_.pop_front();
    serve(*w.view, w.page, w.write, w.since_ns);
  }
  for (std::size_t left = discards_.size(); left > 0; --left) {
    Discard d = std::move(discards_.front());
    discards_.pop_front();
    discard_page(*d.region, d.page, d.countdown);
    finish(std::move(d.countdown));
  }
  over_budget_ = 0;
  // Last: whoever hears of it may close sessions and regions.
  for (auto& countdown : std::exchange(finished_, {})) countdown->done();
}

}  // namespace kvmem::migrate

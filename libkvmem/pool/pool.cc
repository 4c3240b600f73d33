#include "pool/pool.h"

#include <algorithm>
#include <utility>

namespace kvmem::pool {
namespace {

constexpr Status kNoSequence(Code::kInvalid, "no such sequence is open");
constexpr Status kNoLength(Code::kInvalid, "the length is none that the sequence can have");
constexpr std::uint64_t kScanSteps = 64;    // between looks for sequences that have become cold
constexpr std::uint64_t kColdSteps = 1024;  // that did not name it
// While the engine steps the thread looks by itself: waking it would cost a step more than all else
// it does (an interrupt to an idle processor, 150 us in a virtual machine).
constexpr std::uint64_t kLookNs = 2'000'000;
constexpr unsigned kLooksIdle = 50;  // without a step: it sleeps until it is woken

}  // namespace

Result<Owned<KvPool>> KvPool::create(const Geometry& geometry, Owned<Backing> backing) {
  void* room = heap_room<KvPool>();
  if (room == nullptr) return Status(Code::kNoMemory, "a KV pool");
  Owned<KvPool> pool(::new (room) KvPool(geometry, std::move(backing)));
  const LockGuard guard(pool->lock_);
  const std::uint64_t pages = geometry.sequences_max * pool->row_pages_ * pool->planes_;
  const std::uint64_t rows_bytes = geometry.sequences_max * sizeof(Row);
  const std::uint64_t bytes = align_up(rows_bytes + pages * sizeof(std::uint32_t), kOsPageBytes);
  const long tables = sys::mmap(0, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (sys::is_error(tables)) return Status(Code::kNoMemory, "a KV pool's tables");
  pool->tables_.reset({reinterpret_cast<void*>(tables), bytes});
  Row* const rows = ::new (reinterpret_cast<void*>(tables)) Row[geometry.sequences_max];
  pool->rows_ = {rows, geometry.sequences_max};
  pool->table_ = reinterpret_cast<std::uint32_t*>(rows + geometry.sequences_max);
  if (!pool->queue_.reserve(geometry.sequences_max) ||
      !pool->unpopulated_.reserve(geometry.sequences_max) || !pool->held_.resize(1)) {
    return Status(Code::kNoMemory, "a KV pool");
  }
  if (::pthread_create(&pool->thread_, nullptr, thread_main, pool.get()) != 0) {
    return Status(Code::kCancelled, "no thread could be started");
  }
  pool->has_thread_ = true;
  return pool;
}

KvPool::KvPool(const Geometry& geometry, Owned<Backing> backing)
    : geometry_(geometry),
      backing_(std::move(backing)),
      row_pages_(static_cast<std::uint32_t>(geometry.row_bytes() / geometry.page_bytes)),
      planes_(geometry.planes()),
      page_shift_(static_cast<unsigned>(__builtin_ctzll(geometry.page_bytes))),
      token_stride_(geometry.token_stride()),
      ahead_tokens_(std::max<std::uint64_t>(2, geometry.page_bytes / token_stride_ / 4)) {}

KvPool::~KvPool() {
  {
    const LockGuard guard(lock_);
    stop_ = true;
  }
  wake();
  if (has_thread_) ::pthread_join(thread_, nullptr);
  const bool is_paused = backing_->pause().ok();
  for (std::uint32_t row = 0; row < rows_.size(); ++row) {
    drop_parcel(row);
    (void)drop(row, 0);
  }
  if (is_paused) backing_->go_on();
}

std::uint64_t KvPool::tokens_in(std::uint32_t pages) const {
  if (pages >= row_pages_) return geometry_.tokens_max;
  return std::min(geometry_.tokens_max, (std::uint64_t{pages} << page_shift_) / token_stride_);
}

KvPool::Row* KvPool::open_row(std::uint32_t row) {
  if (row >= rows_.size() || rows_[row].state != State::kOpen) return nullptr;
  return &rows_[row];
}

void KvPool::announce() {
  changed_.fetch_add(1, std::memory_order_release);
  sys::futex_wake(changed_, INT32_MAX);
}

void KvPool::wake() {
  work_.fetch_add(1, std::memory_order_release);
  sys::futex_wake(work_, 1);
}

void KvPool::claim_any(std::uint32_t row) {
  for (;;) {
    const std::uint32_t seen = changed_.load(std::memory_order_acquire);
    {
      const LockGuard guard(lock_);
      if (!std::exchange(rows_[row].busy, true)) return;
    }
    sys::futex_wait(changed_, seen);
  }
}

Status KvPool::claim(std::uint32_t row) {
  if (row >= geometry_.sequences_max) return kNoSequence;
  claim_any(row);
  {
    const LockGuard guard(lock_);
    if (rows_[row].state == State::kOpen) return {};
  }
  unclaim(row);
  return kNoSequence;
}

void KvPool::unclaim(std::uint32_t row) {
  {
    const LockGuard guard(lock_);
    set_room(row);
    rows_[row].busy = false;
  }
  announce();
}

void KvPool::set_room(std::uint32_t row) {
  Row& r = rows_[row];
  std::uint32_t page = pages_for(r.room);
  const auto is_mapped = [&] {
    for (std::uint32_t plane = 0; plane < planes_; ++plane) {
      if (entry(row, plane, page) == 0) return false;
    }
    return true;
  };
  while (page < r.high && is_mapped()) ++page;
  r.room = std::max(r.room, tokens_in(page));
}

bool KvPool::Queue::reserve(std::size_t rows) { return ring_.resize(rows) && waits_.resize(rows); }

void KvPool::Queue::push(std::uint32_t row) {
  if (std::exchange(waits_[row], true)) return;
  std::size_t last = first_ + count_++;
  if (last >= ring_.size()) last -= ring_.size();
  ring_[last] = row;
}

bool KvPool::Queue::pop(std::uint32_t* row) {
  if (count_ == 0) return false;
  *row = ring_[first_];
  first_ = first_ + 1 == ring_.size() ? 0 : first_ + 1;
  --count_;
  waits_[*row] = false;
  return true;
}

Status KvPool::find_row(bool bare, std::uint32_t* out) {
  for (;;) {
    const std::uint32_t seen = changed_.load(std::memory_order_acquire);
    bool is_one_busy = false;
    Row* best = nullptr;
    {
      const LockGuard guard(lock_);
      for (Row& r : rows_) {
        if (r.state == State::kOpen) continue;
        is_one_busy |= r.busy;
        if (!r.busy && (best == nullptr || is_better(r, *best, bare))) best = &r;
      }
      if (best != nullptr) {
        best->busy = true;
        *out = static_cast<std::uint32_t>(best - rows_.data());
      }
    }
    if (best != nullptr) {
      const Status status = bare ? clear(*out) : scrub(*out);
      if (!status.ok()) unclaim(*out);
      return status;
    }
    if (!is_one_busy) return {Code::kNoSpace, "all of the pool's sequences are open"};
    sys::futex_wait(changed_, seen);
  }
}

// One that is free before one that has to be cleaned; of those the one with the least mapped, or
// the most.
bool KvPool::is_better(const Row& a, const Row& b, bool bare) {
  if (a.state != b.state) return a.state == State::kFree;
  return bare ? a.high < b.high : a.high > b.high;
}

Status KvPool::open(std::uint32_t* row) {
  KV_TRY(find_row(/*bare=*/false, row));
  begin(*row, 0);
  unclaim(*row);
  return {};
}

void KvPool::begin(std::uint32_t row, std::uint64_t tokens) {
  const LockGuard guard(lock_);
  Row& r = rows_[row];
  r.state = State::kOpen;
  r.tokens = tokens;
  r.step = step_;
  ++stats_.open;
}

Status KvPool::close(std::uint32_t row) {
  KV_TRY(claim(row));
  drop_parcel(row);
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    const bool is_shared = r.shares && shared_from(row, 0);
    r.state = is_shared ? State::kClosing : State::kFree;
    r.tokens = r.goal = 0;
    r.shares = is_shared;
    r.pinned = r.is_cold = r.is_wanted = false;
    --stats_.open;
    if (is_shared) queue_.push(row);
  }
  unclaim(row);
  wake();  // to unmap what is shared, or what is too much
  return {};
}

Status KvPool::truncate(std::uint32_t row, std::uint64_t tokens) {
  KV_TRY(claim(row));
  Status status = length_of(row) < tokens ? kNoLength : restore(row, Means::kParking);
  if (status.ok()) status = unshare(row, tokens);
  if (status.ok()) {
    const LockGuard guard(lock_);
    rows_[row].tokens = tokens;
    rows_[row].goal = 0;
  }
  unclaim(row);
  return status;
}

Status KvPool::ensure(std::uint32_t row, std::uint64_t tokens) {
  KV_TRY(restore(row, Means::kParking));
  return fill(row, pages_for(tokens), Means::kParking);
}

Status KvPool::extend(std::uint32_t row, std::uint64_t tokens) {
  KV_TRY(claim(row));
  Status status = tokens < length_of(row) || tokens > geometry_.tokens_max ? kNoLength : Status();
  if (status.ok()) {
    mark_used(row);
    status = ensure(row, tokens);
  }
  if (status.ok()) {
    const LockGuard guard(lock_);
    rows_[row].tokens = tokens;
  }
  unclaim(row);
  return status;
}

void KvPool::mark_used(std::uint32_t row) {
  const LockGuard guard(lock_);
  rows_[row].step = step_;
}

std::uint64_t KvPool::length_of(std::uint32_t row) const {
  const LockGuard guard(lock_);
  return rows_[row].tokens;
}

Status KvPool::step(const std::uint32_t* rows, const std::uint64_t* tokens, std::size_t count) {
  const Wanted wanted{rows, tokens, count};
  std::uint64_t late_pages = 0;
  for (bool is_first = true;; is_first = false) {
    Late late;
    bool is_there = false;
    bool wakes = false;
    {
      const LockGuard guard(lock_);
      step_ += is_first;
      const Status status = check(wanted, is_first, &late);
      is_there = status.ok() && !late.found;
      if (is_there) wakes = commit(wanted, late_pages);
      // What is there for one of them is not taken for another.
      set_goals(wanted, status.ok() && !is_there);
      if (!status.ok()) return status;
      if (!is_there && rows_[late.row].parked == nullptr) {
        late_pages += planes_ * (pages_for(late.tokens) - pages_for(rows_[late.row].room));
      }
    }
    if (wakes) wake();
    if (is_there) return {};
    Status status = claim(late.row);
    if (status.ok()) {
      status = ensure(late.row, late.tokens);
      unclaim(late.row);
    }
    if (status.ok()) continue;
    const LockGuard guard(lock_);
    set_goals(wanted, false);
    return status;
  }
}

std::uint64_t KvPool::tokens_of(const Wanted& wanted, std::size_t i) const {
  return wanted.tokens != nullptr ? wanted.tokens[i] : rows_[wanted.rows[i]].tokens + 1;
}

Status KvPool::check(const Wanted& wanted, bool is_first, Late* late) {
  for (std::size_t i = 0; i < wanted.count; ++i) {
    Row* const r = open_row(wanted.rows[i]);
    if (r == nullptr) return kNoSequence;
    if (is_first && r->step == step_) return {Code::kInvalid, "a step names a sequence twice"};
    const std::uint64_t tokens = tokens_of(wanted, i);
    if (tokens < r->tokens || tokens > geometry_.tokens_max) return kNoLength;
    r->step = step_;
    if (tokens > r->room && !late->found) *late = {wanted.rows[i], tokens, true};
  }
  return {};
}

void KvPool::set_goals(const Wanted& wanted, bool on) {
  if (!on && !has_goals_) return;
  has_goals_ = on;
  for (std::size_t i = 0; i < wanted.count && wanted.rows[i] < rows_.size(); ++i) {
    rows_[wanted.rows[i]].goal = on ? tokens_of(wanted, i) : 0;
  }
}

bool KvPool::commit(const Wanted& wanted, std::uint64_t late_pages) {
  for (std::size_t i = 0; i < wanted.count; ++i) grow(wanted.rows[i], tokens_of(wanted, i));
  stats_.late_pages += late_pages;
  if (++stats_.steps % kScanSteps == 0) scans_ = true;
  return sleeps_ && (!queue_.empty() || scans_);
}

void KvPool::grow(std::uint32_t row, std::uint64_t tokens) {
  Row& r = rows_[row];
  stats_.grown_pages += std::uint64_t{planes_} * (pages_for(tokens) - pages_for(r.tokens));
  r.tokens = tokens;
  const bool is_short = r.room - tokens <= ahead_tokens_ && r.room < geometry_.tokens_max;
  r.is_wanted |= r.is_cold;
  if (is_short || r.is_wanted) queue_.push(row);
}

Status KvPool::fork(std::uint32_t parent, std::uint64_t tokens, void* stream,
                    std::uint32_t* child) {
  KV_TRY(claim(parent));
  mark_used(parent);
  Status status = tokens > length_of(parent) ? kNoLength : restore(parent, Means::kParking);
  if (status.ok()) status = find_row(/*bare=*/true, child);
  if (status.ok()) {
    status = share(parent, *child, tokens, stream);
    // What closed forks have still mapped may be what there is no room for.
    while (status.code() == Code::kNoMemory && clear(*child).ok() &&
           reclaim(1, Means::kSpare).ok()) {
      status = share(parent, *child, tokens, stream);
    }
    if (status.ok()) {
      begin(*child, tokens);
    } else {
      const LockGuard guard(lock_);
      rows_[*child].state = State::kClosing;
      queue_.push(*child);
    }
    unclaim(*child);
  }
  unclaim(parent);
  if (!status.ok()) wake();
  return status;
}

Status KvPool::park(std::uint32_t row) {
  KV_TRY(claim(row));
  bool pinned = false;
  {
    const LockGuard guard(lock_);
    pinned = rows_[row].pinned;
  }
  const Status status = pinned ? Status(Code::kBusy, "the sequence is pinned") : store(row);
  unclaim(row);
  return status;
}

Status KvPool::resume(std::uint32_t row) {
  KV_TRY(claim(row));
  mark_used(row);
  const Status status = ensure(row, length_of(row));
  advise(row, Heat::kWanted);
  unclaim(row);
  return status;
}

Status KvPool::prefetch(std::uint32_t row) {
  {
    const LockGuard guard(lock_);
    Row* const r = open_row(row);
    if (r == nullptr) return kNoSequence;
    r->step = step_;
    r->is_wanted = true;
    queue_.push(row);
  }
  wake();
  return {};
}

Status KvPool::pin(std::uint32_t row, bool on) {
  const LockGuard guard(lock_);
  Row* const r = open_row(row);
  if (r == nullptr) return kNoSequence;
  r->pinned = on;
  return {};
}

Result<std::uint64_t> KvPool::tokens(std::uint32_t row) const {
  const LockGuard guard(lock_);
  if (row >= rows_.size() || rows_[row].state != State::kOpen) return kNoSequence;
  return rows_[row].tokens;
}

bool KvPool::fits(std::uint64_t tokens, std::uint64_t count) const {
  if (tokens > geometry_.tokens_max || count > geometry_.sequences_max) return false;
  const std::uint64_t pages = count * planes_ * pages_for(tokens);
  const LockGuard guard(lock_);
  if (count > rows_.size() - stats_.open) return false;
  const std::uint64_t there = backing_->available();
  return there >= pages || spare_pages() >= pages - there;
}

void KvPool::predict(std::uint64_t tokens) {
  tokens = std::min(tokens, geometry_.tokens_max * geometry_.sequences_max);
  const std::uint64_t pages = (tokens * token_stride_ + geometry_.page_bytes - 1) >> page_shift_;
  backing_->expect(planes_ * pages);
}

KvPool::Stats KvPool::stats() const {
  const LockGuard guard(lock_);
  Stats stats = stats_;
  for (const Row& r : rows_) stats.parked += r.parked != nullptr;
  for (const Held& held : held_) {
    stats.frames += held.pages > 0;
    stats.shared_frames += held.pages > 1;
  }
  stats.spare_frames = spare_pages();
  stats.late_creates = backing_->created_late();
  return stats;
}

std::uint64_t KvPool::spare_pages() const {
  std::uint64_t pages = 0;
  for (const Row& r : rows_) {
    if (r.state == State::kFree) pages += std::uint64_t{planes_} * r.high;
  }
  return pages;
}

void KvPool::wait_until_quiet() const {
  for (;;) {
    const std::uint32_t seen = quiet_.load(std::memory_order_acquire);
    {
      const LockGuard guard(lock_);
      if (!working_ && queue_.empty() && work_seen_ == work_.load(std::memory_order_acquire)) {
        return;
      }
    }
    sys::futex_wait(quiet_, seen);
  }
}

void* KvPool::thread_main(void* self) {
  (void)sys::block_signals();  // the engine's handlers run on the engine's threads
  static_cast<KvPool*>(self)->run();
  return nullptr;
}

void KvPool::run() {
  std::uint64_t steps = 0;
  unsigned looks = kLooksIdle;  // since the last step
  for (;;) {
    const std::uint32_t seen = work_.load(std::memory_order_acquire);
    std::uint32_t row = 0;
    bool serves = false;
    bool populates = false;
    {
      const LockGuard guard(lock_);
      if (stop_) return;
      working_ = true;
      sleeps_ = false;
      serves = queue_.pop(&row);
      // What must be there comes before what had better be.
      populates = !serves && unpopulated_.pop(&row);
    }
    if (serves) serve(row);
    if (populates) populate(row);
    if (serves || populates) continue;
    trim_and_advise();
    bool is_done = false;
    {
      const LockGuard guard(lock_);
      is_done = queue_.empty() && unpopulated_.empty();
      working_ = !is_done;
      work_seen_ = seen;
      looks = steps == step_ ? looks + 1 : 0;
      steps = step_;
      sleeps_ = is_done && looks > kLooksIdle;
    }
    if (!is_done) continue;
    quiet_.fetch_add(1, std::memory_order_release);
    sys::futex_wake(quiet_, INT32_MAX);
    if (looks > kLooksIdle) {
      sys::futex_wait(work_, seen);
    } else {
      sys::futex_wait_for(work_, seen, kLookNs);
    }
  }
}

void KvPool::serve(std::uint32_t row) {
  claim_any(row);
  State state{};
  std::uint64_t tokens = 0;
  bool is_wanted = false;
  bool is_parked = false;
  {
    const LockGuard guard(lock_);
    Row& r = rows_[row];
    state = r.state;
    tokens = r.tokens;
    is_wanted = std::exchange(r.is_wanted, false);
    is_parked = r.parked != nullptr;
  }
  // What fails here is tried again by whoever needs it.
  if (state == State::kClosing) {
    (void)scrub(row);
  } else if (state == State::kOpen) {
    if (is_wanted) {
      is_parked = !restore(row, Means::kParking).ok();
      advise(row, Heat::kWanted);
    }
    if (!is_parked) {
      const std::uint64_t end = std::min(geometry_.tokens_max, tokens + ahead_tokens_ + 1);
      (void)fill(row, pages_for(end), Means::kSpare);
      const LockGuard guard(lock_);
      if (backing_->is_paged()) unpopulated_.push(row);
    }
  }
  unclaim(row);
}

void KvPool::populate(std::uint32_t row) {
  claim_any(row);
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  {
    const LockGuard guard(lock_);
    const Row& r = rows_[row];
    if (r.state == State::kOpen) {
      first = pages_for(r.tokens);
      end = pages_for(r.room);
    }
  }
  for (std::uint32_t plane = 0; first < end && plane < planes_; ++plane) {
    backing_->populate(page_of(row, plane, first), end - first);
  }
  unclaim(row);
}

// What has become cold, and what closed sequences have left beyond what they may.
void KvPool::trim_and_advise() {
  std::uint64_t spare = 0;
  bool scans = false;
  {
    const LockGuard guard(lock_);
    spare = spare_pages();
    scans = std::exchange(scans_, false);
  }
  const std::uint64_t spare_max = backing_->spare_frames_max();
  if (spare > spare_max) (void)reclaim(spare - spare_max, Means::kSpare);
  for (std::uint32_t row = 0; scans && row < geometry_.sequences_max; ++row) {
    State state{};
    {
      const LockGuard guard(lock_);
      Row& r = rows_[row];
      state = r.state;
      const bool is_cold = state == State::kOpen && backing_->is_paged() && !r.pinned &&
                           !r.is_cold && step_ - r.step > kColdSteps;
      if (r.busy || (!is_cold && state != State::kClosing)) continue;
      r.busy = true;
    }
    if (state == State::kClosing) {
      (void)scrub(row);  // it could not be before
    } else {
      advise(row, Heat::kCold);
    }
    unclaim(row);
  }
}

}  // namespace kvmem::pool

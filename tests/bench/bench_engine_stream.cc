// What a program written for nothing else gets: pages of a model in the same order for each token,
// a fixed part of them in memory, the others read ahead of use. It knows the order, has no page
// table to edit, checks nothing, and its threads compute for as long as the engine's do. The engine
// benchmark sets kvmem beside it: the disk alone, with idle processors, is faster than any engine
// can have it.
//
// usage: bench_engine_stream FILE RESIDENT_PAGES TOKENS THREADS COMPUTE_NS_PER_PAGE [DEPTH
// [WINDOW]]
//
// Pages are of 2 MiB; both kinds are spread evenly over a token. Prints one JSON object: tokens/s
// and bytes read per second over the last three quarters of the tokens.
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kPage = std::size_t{2} << 20;

std::uint64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  ::_exit(1);
}

std::uint8_t* huge(std::size_t pages) {
  void* at = ::mmap(nullptr, (pages + 1) * kPage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) fail("mmap");
  const auto start = (reinterpret_cast<std::uintptr_t>(at) + kPage - 1) / kPage * kPage;
  auto* pages_at = reinterpret_cast<std::uint8_t*>(start);  // NOLINT(performance-no-int-to-ptr)
  (void)::madvise(pages_at, pages * kPage, MADV_HUGEPAGE);
  for (std::size_t i = 0; i < pages * kPage; i += 4096) pages_at[i] = 1;
  return pages_at;
}

// Counted up by one side, waited for by the other.
struct Count {
  std::atomic<std::uint64_t> n{0};
  void add() {
    n.fetch_add(1, std::memory_order_release);
    n.notify_all();
  }
  void wait_until(std::uint64_t wanted) const {
    for (std::uint64_t now = n.load(std::memory_order_acquire); now < wanted;
         now = n.load(std::memory_order_acquire)) {
      n.wait(now, std::memory_order_acquire);
    }
  }
};

struct Plan {
  int fd = -1;
  std::uint64_t pages = 0;
  std::uint64_t resident = 0;
  std::uint64_t tokens = 0;
  unsigned threads = 0;
  std::uint64_t compute_ns = 0;
  unsigned depth = 8;
  unsigned window = 16;

  // Of the first `page` pages of a token, how many are streamed.
  std::uint64_t streamed_before(std::uint64_t page) const {
    return page * (pages - resident) / pages;
  }
  bool is_streamed(std::uint64_t page) const {
    return streamed_before(page + 1) != streamed_before(page);
  }
};

class Stream {
 public:
  explicit Stream(const Plan& plan)
      : plan_(plan),
        resident_(huge(plan.resident)),
        window_(huge(plan.window)),
        done_(plan.threads),
        ready_(plan.window) {
    if (::io_uring_queue_init(plan.depth, &ring_, 0) < 0) fail("io_uring");
    std::uint64_t slot = 0;
    for (std::uint64_t page = 0; page < plan.pages; ++page) {
      if (plan.is_streamed(page)) continue;
      if (::pread(plan.fd, resident_ + slot++ * kPage, kPage, offset(page)) !=
          static_cast<ssize_t>(kPage)) {
        fail("pread");
      }
    }
  }
  ~Stream() { ::io_uring_queue_exit(&ring_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Streamed pages in order, into the window as its places are free. The n-th goes to place
  // n modulo the window, whose `ready` counts its rounds.
  void read_ahead() {
    const std::uint64_t a_token = plan_.pages - plan_.resident;
    const std::uint64_t all = a_token * plan_.tokens;
    std::vector<std::uint64_t> order;
    for (std::uint64_t page = 0; page < plan_.pages; ++page) {
      if (plan_.is_streamed(page)) order.push_back(page);
    }
    unsigned inflight = 0;
    for (std::uint64_t next = 0, finished = 0; finished < all;) {
      while (next < all && inflight < plan_.depth) {
        if (next >= plan_.window && !is_used(next - plan_.window)) {
          if (inflight > 0) break;
          for (const Count& thread : done_) thread.wait_until(next - plan_.window + 1);
        }
        io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
        ::io_uring_prep_read(sqe, plan_.fd, window_ + next % plan_.window * kPage, kPage,
                             static_cast<std::uint64_t>(offset(order[next % a_token])));
        ::io_uring_sqe_set_data64(sqe, next % plan_.window);
        ++next;
        ++inflight;
      }
      if (::io_uring_submit_and_wait(&ring_, 1) < 0) fail("io_uring_submit");
      io_uring_cqe* cqe = nullptr;
      while (::io_uring_peek_cqe(&ring_, &cqe) == 0) {
        if (cqe->res != static_cast<int>(kPage)) fail("read");
        ready_[cqe->user_data].add();
        ::io_uring_cqe_seen(&ring_, cqe);
        --inflight;
        ++finished;
      }
    }
  }

  void compute(unsigned thread) {
    const std::size_t part = kPage / plan_.threads / 4096 * 4096;
    std::uint64_t streamed = 0;
    std::uint64_t sum = 0;
    std::uint64_t computed = 0;
    for (std::uint64_t token = 0; token < plan_.tokens; ++token) {
      if (thread == 0 && token == plan_.tokens / 4) start_ns_ = now_ns();
      std::uint64_t slot = 0;
      for (std::uint64_t page = 0; page < plan_.pages; ++page) {
        const std::uint8_t* at = resident_ + slot * kPage;
        const bool is_streamed = plan_.is_streamed(page);
        if (is_streamed) {
          const std::uint64_t place = streamed % plan_.window;
          ready_[place].wait_until(streamed / plan_.window + 1);
          at = window_ + place * kPage;
        } else {
          ++slot;
        }
        sum += work(at + thread * part, part);
        // The threads of an engine meet after each piece.
        together_.add();
        spin_until(++computed * plan_.threads);
        if (is_streamed) {
          ++streamed;
          done_[thread].add();
        }
      }
    }
    if (thread == 0) end_ns_ = now_ns();
    sink_.fetch_add(sum, std::memory_order_relaxed);
  }

  double seconds() const { return static_cast<double>(end_ns_ - start_ns_) / 1e9; }

 private:
  static off_t offset(std::uint64_t page) { return static_cast<off_t>(page * kPage); }
  bool is_used(std::uint64_t nth) const {
    for (const Count& thread : done_) {
      if (thread.n.load(std::memory_order_acquire) <= nth) return false;
    }
    return true;
  }
  void spin_until(std::uint64_t wanted) const {
    while (together_.n.load(std::memory_order_acquire) < wanted) __builtin_ia32_pause();
  }
  // Reads all of it, for as long as the engine computes with it.
  std::uint64_t work(const std::uint8_t* at, std::size_t size) const {
    const std::uint64_t until = now_ns() + plan_.compute_ns;
    std::uint64_t sum = 0;
    do {
      for (std::size_t i = 0; i < size; i += 64) {
        sum += *reinterpret_cast<const std::uint64_t*>(at + i);
      }
      for (int i = 0; i < 200 && now_ns() < until; ++i) __builtin_ia32_pause();
    } while (now_ns() < until);
    return sum;
  }

  const Plan plan_;
  std::uint8_t* const resident_;
  std::uint8_t* const window_;
  io_uring ring_{};
  std::vector<Count> done_;   // by thread: streamed pages it is done with
  std::vector<Count> ready_;  // by place in the window
  Count together_;
  std::atomic<std::uint64_t> sink_{0};
  std::uint64_t start_ns_ = 0;
  std::uint64_t end_ns_ = 0;
};

std::uint64_t number(const char* text) {
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0') {
    std::fprintf(stderr, "bench_engine_stream: '%s' is no number\n", text);
    ::_exit(2);
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6 || argc > 8) {
    std::fprintf(
        stderr,
        "usage: bench_engine_stream FILE RESIDENT_PAGES TOKENS THREADS COMPUTE_NS_PER_PAGE "
        "[DEPTH [WINDOW]]\n");
    return 2;
  }
  Plan plan;
  plan.fd = ::open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
  struct stat file {};
  if (plan.fd < 0 || ::fstat(plan.fd, &file) != 0) fail(argv[1]);
  plan.pages = static_cast<std::uint64_t>(file.st_size) / kPage;
  plan.resident = number(argv[2]);
  plan.tokens = number(argv[3]);
  plan.threads = static_cast<unsigned>(number(argv[4]));
  plan.compute_ns = number(argv[5]);
  if (argc > 6) plan.depth = static_cast<unsigned>(number(argv[6]));
  if (argc > 7) plan.window = static_cast<unsigned>(number(argv[7]));
  if (plan.resident >= plan.pages || plan.tokens < 4 || plan.threads == 0 || plan.threads > 64 ||
      plan.depth == 0 || plan.window < plan.depth || plan.window > 4096) {
    std::fprintf(
        stderr,
        "bench_engine_stream: less in memory than the file's %llu pages, at least 4 tokens, 1 "
        "to 64 threads, a window from the depth to 4096\n",
        static_cast<unsigned long long>(plan.pages));
    return 2;
  }
  Stream stream(plan);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < plan.threads; ++i) threads.emplace_back([&, i] { stream.compute(i); });
  stream.read_ahead();
  for (std::thread& thread : threads) thread.join();
  const std::uint64_t measured = plan.tokens - plan.tokens / 4;
  const auto tokens = static_cast<double>(measured);
  const auto bytes = static_cast<double>((plan.pages - plan.resident) * kPage);
  std::printf("{\"tokens_per_s\": %.4f, \"read_bytes_per_s\": %.0f}\n", tokens / stream.seconds(),
              tokens * bytes / stream.seconds());
  return 0;
}

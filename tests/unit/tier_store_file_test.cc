// The page store on a real file, io_uring and worker threads included: the lock, and a process that
// is killed over and over while it writes. Every record it was told is written must be there.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_handle.h"
#include "os/block_device.h"
#include "os/ring.h"
#include "os/workers.h"
#include "tier/store.h"

namespace kvmem::tier {
namespace {

struct Buffer {
  explicit Buffer(std::uint64_t size_bytes)
      : size(size_bytes), bytes(static_cast<std::uint8_t*>(std::aligned_alloc(4096, size_bytes))) {}
  ~Buffer() { std::free(bytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void fill(std::uint64_t seed) {
    auto* words = reinterpret_cast<std::uint64_t*>(bytes);
    for (std::uint64_t i = 0; i < size / 8; ++i) words[i] = (seed + i) * 0x9e3779b97f4a7c15;
  }
  bool holds(std::uint64_t seed) const {
    const auto* words = reinterpret_cast<const std::uint64_t*>(bytes);
    for (std::uint64_t i = 0; i < size / 8; ++i) {
      if (words[i] != (seed + i) * 0x9e3779b97f4a7c15) return false;
    }
    return true;
  }
  const std::uint64_t size;
  std::uint8_t* bytes;
};

StoreOptions options_for(std::uint64_t page_bytes) {
  StoreOptions options;
  options.page_bytes = page_bytes;
  options.slots_per_segment = 16;
  options.capacity_bytes = 20 * 16 * (page_bytes + 4096);
  options.inflight_max = 16;
  options.sync_interval_ns = 2'000'000;
  std::memset(options.boot_id, 7, sizeof options.boot_id);
  return options;
}

// A store on a file, with what it needs, as the daemon has it.
struct Host {
  explicit Host(unsigned workers) {
    Result<os::Ring> made = os::Ring::create(128);
    if (!made.ok()) return;
    ring = std::make_unique<os::Ring>(*std::move(made));
    if (workers == 0) {
      executor = std::make_unique<os::InlineExecutor>();
    } else {
      Result<std::unique_ptr<os::WorkerPool>> pool = os::WorkerPool::create(*ring, workers);
      if (pool.ok()) executor = *std::move(pool);
    }
  }
  Status open(const std::string& path, const StoreOptions& options, unsigned lock_wait_ms = 5000) {
    os::BlockFileOptions file;
    file.lock_wait_ms = lock_wait_ms;
    KV_ASSIGN_OR_RETURN(std::unique_ptr<os::BlockDevice> device,
                        os::open_block_file(*ring, path, file));
    KV_ASSIGN_OR_RETURN(store, Store::open(std::move(device), *executor, options));
    return {};
  }
  std::unique_ptr<os::Ring> ring;
  std::unique_ptr<os::Executor> executor;
  std::unique_ptr<Store> store;
};

struct Note {  // from the child: one write(2) to a pipe each, so whole or not there
  enum What : std::uint32_t { kWritten, kReleasing, kFailed };
  What what = kWritten;
  RecordKind kind = RecordKind::kEphemeral;
  std::uint64_t key = 0;
  std::uint64_t generation = 0;
  Locator locator = 0;
};

// Which records the next child keeps.
bool is_kept(std::uint64_t generation) { return generation % 4 == 0; }

// Writes, releases and tells, until it is killed.
class Child {
 public:
  Child(const std::string& path, std::uint64_t page_bytes, std::uint64_t first, int tell)
      : host_(2), generation_(first), tell_(tell) {
    const Status status = host_.open(path, options_for(page_bytes));
    if (!status.ok()) {
      std::fprintf(stderr, "child: %s (%d)\n", status.what(), status.detail());
      std::_Exit(1);
    }
    for (const Record& r : host_.store->records()) {
      if (!is_kept(r.generation)) continue;
      if (!host_.store->claim(r.key, r.generation, r.locator).ok()) std::_Exit(5);
      mine_.push_back({Note::kWritten, r.kind, r.key.hi, r.generation, r.locator});
    }
    host_.store->release_unclaimed(RecordKind::kEphemeral);
    host_.store->release_unclaimed(RecordKind::kPersistent);
    for (Op& op : ops_) {
      op.child = this;
      op.buffer = std::make_unique<Buffer>(page_bytes);
      op.done = [](WriteOp* self, Status outcome) {
        auto* o = static_cast<Op*>(self);
        o->busy = false;
        o->child->written(*o, outcome);
      };
    }
  }

  [[noreturn]] void run() {
    std::uint64_t now_ns = 0;
    for (;;) {
      for (Op& op : ops_) {
        if (!op.busy) write(op);
      }
      host_.store->tick(now_ns += 1'000'000);
      if (!host_.ring->run_once(true).ok()) std::_Exit(2);
    }
  }

 private:
  struct Op : WriteOp {
    Child* child = nullptr;
    std::unique_ptr<Buffer> buffer;
    bool busy = false;
  };

  void write(Op& op) {
    op.generation = ++generation_;
    op.key = {op.generation % 100, 5};
    op.kind = op.generation % 3 == 0 ? RecordKind::kPersistent : RecordKind::kEphemeral;
    op.until_durable = true;
    op.buffer->fill(op.generation);
    op.page = op.buffer->bytes;
    const Status status = host_.store->write(&op);
    op.busy = status.ok();
    if (status.ok()) return;
    // Never: at most 100 records and what is under way, in a store for 320.
    std::fprintf(stderr, "child: %s\n", status.what());
    std::_Exit(6);
  }
  void written(Op& op, Status status) {
    if (!status.ok()) {
      note({Note::kFailed, op.kind, 0, 0, 0});
      return;
    }
    const Note n{Note::kWritten, op.kind, op.key.hi, op.generation, op.locator};
    mine_.push_back(n);
    note(n);
    while (mine_.size() > 100) release_one();
  }
  void release_one() {
    if (mine_.empty()) return;
    const std::size_t pick = generation_ * 7919 % mine_.size();
    Note n = mine_[pick];
    mine_[pick] = mine_.back();
    mine_.pop_back();
    n.what = Note::kReleasing;
    note(n);  // before: after it the record may be gone at any time
    if (!host_.store->release({n.key, 5}, n.generation, n.locator).ok()) std::_Exit(3);
  }
  void note(const Note& n) {
    if (::write(tell_, &n, sizeof n) != sizeof n) std::_Exit(4);
  }

  Host host_;
  std::uint64_t generation_;
  const int tell_;
  Op ops_[12];
  std::vector<Note> mine_;
};

class StoreFile : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::temp_directory_path() / ("kvmem_store_" + std::to_string(getpid()));
    std::filesystem::create_directory(directory_);
    path_ = directory_ / "store";
    if (Host probe(0); probe.ring == nullptr) GTEST_SKIP() << "no io_uring here";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  static Status finish(Host& host, const Status& outcome, const bool& ended) {
    while (!ended) KV_TRY(host.ring->run_once(true).status());
    return outcome;
  }
  static Status write(Host& host, std::uint64_t generation, const Buffer& page, RecordKind kind,
                      Locator* locator) {
    struct : WriteOp {
      Status outcome;
      bool ended = false;
    } op;
    using Op = decltype(op);
    op.key = {generation % 100, 5};
    op.generation = generation;
    op.kind = kind;
    op.until_durable = true;
    op.page = page.bytes;
    op.done = [](WriteOp* self, Status status) {
      static_cast<Op*>(self)->outcome = status;
      static_cast<Op*>(self)->ended = true;
    };
    KV_TRY(host.store->write(&op));
    const Status status = finish(host, op.outcome, op.ended);
    *locator = op.locator;
    return status;
  }
  static Status read(Host& host, std::uint64_t generation, Locator locator, Buffer& page) {
    struct : ReadOp {
      Status outcome;
      bool ended = false;
    } op;
    using Op = decltype(op);
    op.key = {generation % 100, 5};
    op.generation = generation;
    op.locator = locator;
    op.page = page.bytes;
    op.done = [](ReadOp* self, Status status) {
      static_cast<Op*>(self)->outcome = status;
      static_cast<Op*>(self)->ended = true;
    };
    KV_TRY(host.store->read(&op));
    return finish(host, op.outcome, op.ended);
  }

  void kill_in_a_loop(std::uint64_t page_bytes, int rounds);

  std::filesystem::path directory_;
  std::string path_;
};

TEST_F(StoreFile, PagesComeBackAfterReopening) {
  Buffer page(kPageBytes);
  Buffer back(kPageBytes);
  std::map<std::uint64_t, Locator> at;
  for (int life = 0; life < 2; ++life) {
    Host host(2);
    ASSERT_TRUE(host.open(path_, options_for(kPageBytes)).ok());
    for (auto [generation, locator] : at) {
      ASSERT_TRUE(read(host, generation, locator, back).ok());
      EXPECT_TRUE(back.holds(generation));
    }
    for (std::uint64_t i = 1; i <= 20; ++i) {
      const std::uint64_t generation = static_cast<std::uint64_t>(life) * 100 + i;
      page.fill(generation);
      const RecordKind kind = i % 2 == 0 ? RecordKind::kPersistent : RecordKind::kEphemeral;
      ASSERT_TRUE(write(host, generation, page, kind, &at[generation]).ok());
    }
    for (auto [generation, locator] : at) {
      ASSERT_TRUE(read(host, generation, locator, back).ok());
      EXPECT_TRUE(back.holds(generation));
    }
    host.store->validate();
    EXPECT_EQ(host.store->stats().corrupt, 0U);
  }
}

TEST_F(StoreFile, SecondProcessIsToldWhoHasIt) {
  Host first(0);
  ASSERT_TRUE(first.open(path_, options_for(65536)).ok());
  Host second(0);
  const Status status = second.open(path_, options_for(65536), 0);
  EXPECT_EQ(status.code(), Code::kBusy);
  EXPECT_NE(std::strstr(status.what(), "another kvmemd"), nullptr);
  first.store.reset();
  EXPECT_TRUE(second.open(path_, options_for(65536), 0).ok());
}

TEST_F(StoreFile, NeitherFileNorDeviceIsRefused) {
  Host host(0);
  EXPECT_EQ(host.open(directory_, options_for(65536)).code(), Code::kErrno);  // EISDIR
  EXPECT_EQ(host.open("/dev/null", options_for(65536)).code(), Code::kInvalid);
  EXPECT_EQ(host.open(directory_ / "none" / "store", options_for(65536)).code(), Code::kErrno);
}

TEST_F(StoreFile, OpeningABigStoreIsNotWritingIt) {
  Host host(0);
  StoreOptions options = options_for(kPageBytes);
  options.capacity_bytes = 1ULL << 40;
  ASSERT_TRUE(host.open(path_, options).ok());
  EXPECT_EQ(std::filesystem::file_size(path_), 8192U);
  EXPECT_GT(host.store->stats().slots_max, 520'000U);
}

void StoreFile::kill_in_a_loop(std::uint64_t page_bytes, int rounds) {
  std::map<std::uint64_t, Note> expected;  // by generation
  Buffer page(page_bytes);
  std::uint64_t acknowledged = 0;
  std::uint64_t checked = 0;
  std::uint64_t generation = 0;
  std::uint64_t random = 12345;
  for (int round = 0; round < rounds; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    UniqueFd hear(ends[0]);
    UniqueFd tell(ends[1]);
    const std::string size = std::to_string(page_bytes);
    const std::string first = std::to_string(generation);
    const char* arguments[] = {"child",      "--child",     path_.c_str(),
                               size.c_str(), first.c_str(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, tell.get(), 3);
    pid_t child = 0;
    ASSERT_EQ(::posix_spawn(&child, "/proc/self/exe", &actions, nullptr,
                            const_cast<char**>(arguments), environ),
              0);
    posix_spawn_file_actions_destroy(&actions);
    tell.reset();

    // Kill it at some moment after the n-th acknowledgement.
    random = random * 6364136223846793005 + 1442695040888963407;
    std::uint64_t until = acknowledged + 1 + (random >> 33) % 300;
    Note note;
    bool killed = false;
    for (;;) {
      const ssize_t got = ::read(hear.get(), &note, sizeof note);
      if (got == 0) break;
      ASSERT_EQ(got, static_cast<ssize_t>(sizeof note));
      ASSERT_NE(note.what, Note::kFailed);
      generation = std::max(generation, note.generation);
      if (note.what == Note::kWritten) {
        ++acknowledged;
        expected[note.generation] = note;
      } else {
        expected.erase(note.generation);
      }
      if (acknowledged >= until && !killed) {
        ::usleep(static_cast<unsigned>((random >> 20) % 2000));
        ASSERT_EQ(::kill(child, SIGKILL), 0);
        killed = true;
      }
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(killed && WIFSIGNALED(status)) << "child ended by itself: " << status;
    generation += 1000;  // what it began without telling

    Host host(0);
    ASSERT_TRUE(host.open(path_, options_for(page_bytes)).ok());
    host.store->validate();
    for (auto it = expected.begin(); it != expected.end();) {
      const Note& n = it->second;
      ASSERT_TRUE(host.store->claim({n.key, 5}, n.generation, n.locator).ok())
          << "lost " << n.generation << " in round " << round;
      ASSERT_TRUE(read(host, n.generation, n.locator, page).ok());
      ASSERT_TRUE(page.holds(n.generation)) << "wrong bytes";
      ++checked;
      ++it;
    }
    for (const Record& r : host.store->records()) {  // released or never told: right, or refused
      if (expected.count(r.generation) != 0) continue;
      const Status outcome = read(host, r.generation, r.locator, page);
      ASSERT_TRUE(!outcome.ok() || page.holds(r.generation)) << "wrong bytes";
    }
    std::erase_if(expected, [](const auto& e) { return !is_kept(e.first); });
  }
  std::printf("%d kills, %llu records acknowledged, %llu checked after a kill\n", rounds,
              static_cast<unsigned long long>(acknowledged),
              static_cast<unsigned long long>(checked));
  EXPECT_GT(checked, static_cast<std::uint64_t>(rounds) * 20);
}

TEST_F(StoreFile, KillNineLosesNothingAcknowledged) { kill_in_a_loop(65536, 40); }
TEST_F(StoreFile, KillNineLosesNothingAcknowledgedWholePages) { kill_in_a_loop(kPageBytes, 5); }

}  // namespace

int child_main(char** arguments) {
  Child child(arguments[2], std::strtoull(arguments[3], nullptr, 10),
              std::strtoull(arguments[4], nullptr, 10), 3);
  child.run();
}

}  // namespace kvmem::tier

int main(int argc, char** argv) {
  if (argc == 5 && std::strcmp(argv[1], "--child") == 0) return kvmem::tier::child_main(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

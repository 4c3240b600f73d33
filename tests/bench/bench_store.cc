// Random reads or writes of whole pages through the page store, at a fixed queue depth, into huge
// pages, verification included. One line of figures; tests/bench/store.py runs it beside fio.
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/unique_handle.h"
#include "os/block_device.h"
#include "os/ring.h"
#include "os/workers.h"
#include "tier/store.h"

namespace kvmem::tier {
namespace {

std::uint64_t now_ns() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec);
}

// Of all threads, those of the kernel that work for our ring included.
double cpu_seconds() {
  rusage use{};
  ::getrusage(RUSAGE_SELF, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

struct Bench;

struct Lane {  // one place in the queue
  struct Write : WriteOp {
    Lane* lane = nullptr;
  } write;
  struct Read : ReadOp {
    Lane* lane = nullptr;
  } read;
  Bench* bench = nullptr;
  std::uint64_t begin_ns = 0;
  bool busy = false;
};

struct Bench {
  Store* store = nullptr;
  bool writing = false;
  std::vector<Record> records;
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<std::uint64_t> latencies_ns;
  std::mt19937_64 random{7};
  std::uint64_t generation = 0;
  std::uint64_t moved = 0;
  bool stop = false;

  [[noreturn]] static void die(const char* what, const Status& status) {
    std::fprintf(stderr, "bench_store: %s: %s (%d)\n", what, status.what(), status.detail());
    std::_Exit(1);
  }

  void start(Lane& lane) {
    lane.begin_ns = now_ns();
    lane.busy = true;
    const std::size_t pick = random() % std::max<std::size_t>(records.size(), 1);
    if (writing) {
      // Give a random record up, and write into what has become free.
      if (records.size() + lanes.size() > store->stats().slots_max) {
        const Record old = records[pick];
        records[pick] = records.back();
        records.pop_back();
        if (!store->release(old.key, old.generation, old.locator).ok()) std::_Exit(1);
      }
      lane.write.key = {1, 2};
      lane.write.generation = ++generation;
      if (Status status = store->write(&lane.write); !status.ok()) die("write", status);
    } else {
      lane.read.key = records[pick].key;
      lane.read.generation = records[pick].generation;
      lane.read.locator = records[pick].locator;
      if (Status status = store->read(&lane.read); !status.ok()) die("read", status);
    }
  }
  void ended(Lane& lane, const Status& status) {
    if (!status.ok()) die(writing ? "write" : "read", status);
    ++moved;
    lane.busy = false;
    latencies_ns.push_back(now_ns() - lane.begin_ns);
    if (writing) {
      records.push_back(
          {lane.write.key, lane.write.generation, lane.write.locator, RecordKind::kEphemeral});
    }
    if (!stop) start(lane);
  }
};

int run(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr,
                 "usage: bench_store FILE fill|read|write GIB DEPTH SECONDS WORKERS\n"
                 "  fill: make the file and write all of it once\n");
    return 2;
  }
  const std::string path = argv[1];
  const bool fill = std::strcmp(argv[2], "fill") == 0;
  const auto size_bytes = static_cast<std::uint64_t>(std::atof(argv[3]) * (1U << 30));
  const auto depth = static_cast<std::size_t>(std::atoi(argv[4]));
  const double seconds = std::atof(argv[5]);
  const int workers = std::atoi(argv[6]);

  Result<os::Ring> ring = os::Ring::create(256);
  if (!ring.ok()) Bench::die("io_uring", ring.status());
  std::unique_ptr<os::Executor> executor = std::make_unique<os::InlineExecutor>();
  if (workers > 0) {
    Result<std::unique_ptr<os::WorkerPool>> pool =
        os::WorkerPool::create(*ring, static_cast<unsigned>(workers));
    if (!pool.ok()) Bench::die("workers", pool.status());
    executor = *std::move(pool);
  }
  Result<std::unique_ptr<os::BlockDevice>> device = os::open_block_file(*ring, path);
  if (!device.ok()) Bench::die(path.c_str(), device.status());
  StoreOptions options;
  options.capacity_bytes = size_bytes;
  std::memset(options.boot_id, 1, sizeof options.boot_id);  // found again by the next run
  Result<std::unique_ptr<Store>> opened = Store::open(*std::move(device), *executor, options);
  if (!opened.ok()) Bench::die(path.c_str(), opened.status());
  Store& store = **opened;

  const std::size_t memory_bytes = depth * kPageBytes;
  void* memory = ::mmap(nullptr, memory_bytes + kPageBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Bench::die("mmap", Status::from_errno("mmap"));
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  char* pages = static_cast<char*>(memory) + (align_up(address, kPageBytes) - address);
  ::madvise(pages, memory_bytes, MADV_HUGEPAGE);
  std::mt19937_64 noise(1);
  for (std::size_t i = 0; i < memory_bytes; i += 8) {
    const std::uint64_t value = noise();
    std::memcpy(pages + i, &value, 8);
  }

  Bench bench;
  bench.store = &store;
  bench.writing = fill || std::strcmp(argv[2], "write") == 0;
  bench.records = store.records();
  for (const Record& r : bench.records) bench.generation = std::max(bench.generation, r.generation);
  bench.records.reserve(store.stats().slots_max);
  bench.latencies_ns.reserve(1 << 20);
  if (!fill && bench.records.empty())
    Bench::die("run fill first", Status(Code::kNotFound, "empty"));
  for (std::size_t i = 0; i < depth; ++i) {
    bench.lanes.push_back(std::make_unique<Lane>());
    Lane& lane = *bench.lanes.back();
    lane.bench = &bench;
    lane.write.lane = lane.read.lane = &lane;
    lane.write.page = lane.read.page = pages + i * kPageBytes;
    lane.write.done = [](WriteOp* self, Status status) {
      Lane& l = *static_cast<Lane::Write*>(self)->lane;
      l.bench->ended(l, status);
    };
    lane.read.done = [](ReadOp* self, Status status) {
      Lane& l = *static_cast<Lane::Read*>(self)->lane;
      l.bench->ended(l, status);
    };
  }

  const auto loop = [&] {
    if (Result<unsigned> ran = ring->run_once(true); !ran.ok()) Bench::die("loop", ran.status());
  };
  const StoreStats before = store.stats();
  const double cpu_before = cpu_seconds();
  const std::uint64_t begin_ns = now_ns();
  for (auto& lane : bench.lanes) bench.start(*lane);
  if (fill) {
    while (bench.records.size() + depth < store.stats().slots_max) loop();
  } else {
    while (static_cast<double>(now_ns() - begin_ns) < seconds * 1e9) loop();
  }
  bench.stop = true;
  while (!store.idle()) loop();
  const double elapsed = static_cast<double>(now_ns() - begin_ns) * 1e-9;
  const double cpu = cpu_seconds() - cpu_before;

  const double gib = static_cast<double>(bench.moved * kPageBytes) / (1U << 30);
  const double checksum =
      static_cast<double>(store.stats().checksum_ns - before.checksum_ns) * 1e-9;
  std::sort(bench.latencies_ns.begin(), bench.latencies_ns.end());
  const auto latency_us = [&](std::size_t percent) {
    const std::size_t n = bench.latencies_ns.size();
    return static_cast<double>(bench.latencies_ns[n * percent / 100]) / 1e3;
  };
  std::printf(
      "{\"gb_per_s\":%.3f,\"cpu_ms_per_gib\":%.2f,\"checksum_ms_per_gib\":%.2f,\"p50_us\":%.0f,"
      "\"p99_us\":%.0f}\n",
      static_cast<double>(bench.moved * kPageBytes) / elapsed / 1e9, cpu * 1e3 / gib,
      checksum * 1e3 / gib, latency_us(50), latency_us(99));
  opened = Status(Code::kCancelled, "closed");  // before the executor
  ::munmap(memory, memory_bytes + kPageBytes);
  return 0;
}

}  // namespace
}  // namespace kvmem::tier

int main(int argc, char** argv) { return kvmem::tier::run(argc, argv); }

// Before main, after main, and from other threads: static constructors and destructors with large
// allocations, threads that start before main, blocks that another thread frees, operator new.
// usage: lifetimes [SEED]
#include <pthread.h>

#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>

extern "C" {
#include "pattern.h"
}

namespace {

constexpr size_t kSize = 36 * MIB;

struct Global {
  unsigned char* block = static_cast<unsigned char*>(malloc(kSize));
  std::vector<uint64_t> vector = std::vector<uint64_t>(kSize / 8, 7);
  std::thread thread;
  std::atomic<bool> thread_done{false};

  Global() {
    REQUIRE(block != nullptr, "malloc before main");
    fill(block, 0, kSize, 1);
    thread = std::thread([this] {
      unsigned char* own = static_cast<unsigned char*>(calloc(1, kSize));
      check_zero(own, 0, kSize, "thread before main");
      check(block, 0, kSize, 1, "thread before main");
      free(own);
      thread_done = true;
    });
  }
  ~Global() {
    check(block, 0, kSize, 1, "static destructor");
    for (const uint64_t word : vector) REQUIRE(word == 7, "static destructor, vector");
    free(block);
    unsigned char* late = static_cast<unsigned char*>(malloc(kSize));
    REQUIRE(late != nullptr, "malloc in a static destructor");
    fill(late, 0, kSize, 3);
    check(late, 0, kSize, 3, "static destructor");
    free(late);
    printf("ok static destructors\n");
    fflush(stdout);
  }
};
Global g_global;

void* free_it(void* p) {
  check(p, 0, kSize, 4, "in the freeing thread");
  free(p);
  return nullptr;
}

void freed_by_another_thread() {
  for (int i = 0; i < 20; ++i) {
    void* p = malloc(kSize);
    fill(p, 0, kSize, 4);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, nullptr, free_it, p) == 0, "thread");
    pthread_join(thread, nullptr);
  }
  printf("ok blocks freed by another thread\n");
}

void many_threads_allocate() {
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      for (unsigned i = 0; i < 20; ++i) {
        void* p = malloc(kSize);
        REQUIRE(p != nullptr, "malloc");
        fill(p, 0, MIB, t * 100 + i);
        fill(p, kSize - MIB, kSize, t * 100 + i);
        check(p, 0, MIB, t * 100 + i, "one of many threads");
        check(p, kSize - MIB, kSize, t * 100 + i, "one of many threads");
        free(p);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  printf("ok 8 threads allocate and free at once\n");
}

void operator_new() {
  auto plain = std::make_unique<unsigned char[]>(kSize);
  require_managed(plain.get());
  check_zero(plain.get(), 0, kSize, "make_unique");
  struct alignas(4096) Aligned {
    unsigned char bytes[kSize];
  };
  auto aligned = std::unique_ptr<Aligned>(new Aligned);
  REQUIRE(reinterpret_cast<uintptr_t>(aligned.get()) % 4096 == 0, "aligned new");
  fill(aligned->bytes, 0, kSize, 5);
  std::vector<uint64_t> growing;
  for (uint64_t i = 0; i < 12 * MIB; ++i) growing.push_back(pattern(i, 6));
  for (uint64_t i = 0; i < 12 * MIB; ++i)
    REQUIRE(growing[i] == pattern(i, 6), "vector at %llu", static_cast<unsigned long long>(i));
  check(aligned->bytes, 0, kSize, 5, "aligned new");
  volatile size_t too_much = SIZE_MAX / 4;  // a constant would be refused by the compiler
  REQUIRE(new (std::nothrow) unsigned char[too_much] == nullptr, "too much");
  printf("ok operator new and a growing vector\n");
}

}  // namespace

int main(int argc, char** argv) {
  take_seed(argc, argv, 1);
  g_seed = 1;  // the constructors ran with it
  g_global.thread.join();
  REQUIRE(g_global.thread_done, "thread before main");
  check(g_global.block, 0, kSize, 1, "allocated before main");
  printf("ok static constructors and threads before main\n");
  freed_by_another_thread();
  many_threads_allocate();
  operator_new();
  return 0;
}

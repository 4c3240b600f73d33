// Executor: where work that would hold up the loop runs (copies, checksums, page-table edits).
//
// A Job is caller-owned: `work` runs on some thread, then `done` runs on the loop's thread. Between
// execute() and `done` the job and all it names belong to the executor.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/thread_safety.h"
#include "base/unique_handle.h"
#include "os/ring.h"

namespace kvmem::os {

struct Job {
  void (*work)(Job* self) = nullptr;  // any thread; touches only what the job names
  void (*done)(Job* self) = nullptr;  // loop thread
  Job* next = nullptr;                // executor only
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual void execute(Job* job) = 0;
};

// Runs work and done on the spot; for tests and tools.
class InlineExecutor final : public Executor {
 public:
  void execute(Job* job) override {
    job->work(job);
    job->done(job);
  }
};

// A fixed number of threads, one intrusive queue, finished jobs handed back through an eventfd that
// the ring reads.
class WorkerPool final : public Executor {
 public:
  // REQUIRES: ring outlives the pool; threads >= 1.
  static Result<std::unique_ptr<WorkerPool>> create(Ring& ring, unsigned threads);
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  // Ends the threads after the queued work; `done` of what is left does not run.
  ~WorkerPool() override;

  void execute(Job* job) override;

 private:
  explicit WorkerPool(Ring& ring) : ring_(ring) {}
  void work_until_stopped();
  void arm();
  static void on_wake(Completion* self, int result, std::uint32_t flags);

  struct Wake : Completion {
    WorkerPool* pool = nullptr;
  };

  Ring& ring_;
  UniqueFd event_;
  std::uint64_t event_value_ = 0;  // loop only
  Wake wake_;
  std::atomic<Job*> finished_{
      nullptr};  // pushed with release by workers, taken with acquire by loop

  Mutex mu_;
  CondVar more_;
  Job* first_ GUARDED_BY(mu_) = nullptr;
  Job* last_ GUARDED_BY(mu_) = nullptr;
  bool stop_ GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvmem::os

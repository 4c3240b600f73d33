#include "os/workers.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>

#include "base/check.h"

namespace kvmem::os {

Result<std::unique_ptr<WorkerPool>> WorkerPool::create(Ring& ring, unsigned threads) {
  std::unique_ptr<WorkerPool> pool(new WorkerPool(ring));
  pool->event_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!pool->event_) return Status::from_errno("eventfd");
  pool->wake_.run = &WorkerPool::on_wake;
  pool->wake_.pool = pool.get();
  // Workers take no signals: those are the loop's.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned i = 0; i < threads; ++i) {
    pool->threads_.emplace_back([p = pool.get()] { p->work_until_stopped(); });
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pool->arm();
  return pool;
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  more_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  ring_.cancel(&wake_);
  // The read of event_ ends before event_value_ goes: reap until its completion has run.
  while (wake_.pool != nullptr && ring_.run_once(true).ok()) {
  }
}

void WorkerPool::arm() {
  ring_.prepare(&wake_, [&](io_uring_sqe* sqe) {
    io_uring_prep_read(sqe, event_.get(), &event_value_, sizeof event_value_, 0);
  });
}

void WorkerPool::execute(Job* job) {
  job->next = nullptr;
  {
    MutexLock lock(mu_);
    if (last_ != nullptr) {
      last_->next = job;
    } else {
      first_ = job;
    }
    last_ = job;
  }
  more_.notify_one();
}

void WorkerPool::work_until_stopped() {
  for (;;) {
    Job* job = nullptr;
    {
      MutexLock lock(mu_);
      while (first_ == nullptr && !stop_) more_.wait(mu_);
      if (first_ == nullptr) return;
      job = first_;
      first_ = job->next;
      if (first_ == nullptr) last_ = nullptr;
    }
    job->work(job);
    Job* head = finished_.load(std::memory_order_relaxed);
    do {
      job->next = head;
    } while (!finished_.compare_exchange_weak(head, job, std::memory_order_release,
                                              std::memory_order_relaxed));
    if (head == nullptr) {  // first of a batch wakes the loop
      const std::uint64_t one = 1;
      KV_CHECK(::write(event_.get(), &one, sizeof one) == sizeof one);
    }
  }
}

void WorkerPool::on_wake(Completion* self, int result, std::uint32_t /*flags*/) {
  WorkerPool* pool = static_cast<Wake*>(self)->pool;
  if (result == -ECANCELED) {
    pool->wake_.pool = nullptr;
    return;
  }
  pool->arm();
  Job* newest = pool->finished_.exchange(nullptr, std::memory_order_acquire);
  Job* oldest = nullptr;  // reverse: first finished, first done
  while (newest != nullptr) {
    Job* next = newest->next;
    newest->next = oldest;
    oldest = newest;
    newest = next;
  }
  while (oldest != nullptr) {
    Job* next = oldest->next;
    oldest->done(oldest);
    oldest = next;
  }
}

}  // namespace kvmem::os

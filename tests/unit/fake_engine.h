// FakeEngine: an engine in the test's own process. Maps a region the way libkvmem does, hands the
// userfaultfd to the loop, and runs engine code on a thread of its own while the test runs the
// loop.
#pragma once

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/page.h"
#include "base/unique_handle.h"
#include "loop/loop.h"
#include "os/clock.h"
#include "os/fault_reader.h"
#include "os/userfault.h"
#include "os/watch.h"

namespace kvmem::test {

class FakeEngine {
 public:
  explicit FakeEngine(loop::Loop& loop) : loop_(loop) {
    uffd_ = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                   UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS |
                   UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    usable_ = uffd_ && ::ioctl(uffd_.get(), UFFDIO_API, &api) == 0;
    if (!usable_) return;
    reader_.start(
        loop.ring(), uffd_.get(), this,
        [](void* self, std::span<const os::Fault> faults) {
          static_cast<FakeEngine*>(self)->on_faults(faults);
        },
        [](void*) {});
  }
  FakeEngine(const FakeEngine&) = delete;
  FakeEngine& operator=(const FakeEngine&) = delete;
  ~FakeEngine() {
    while (!views_.empty()) unmap(*views_.back());
    reader_.stop();
    while (!reader_.idle()) (void)loop_.run_once();
  }

  // False where userfaultfd is not permitted: the test skips.
  bool usable() const { return usable_; }

  // Maps `pages` pages of the region from `first` on.
  migrate::View* map(migrate::Region& region, std::uint32_t first = 0, std::uint32_t pages = 0) {
    if (pages == 0) pages = region.page_count();
    const std::size_t size = static_cast<std::size_t>(pages) << kPageShift;
    void* reserve = ::mmap(nullptr, size + kPageBytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const std::uint64_t at = align_up(reinterpret_cast<std::uint64_t>(reserve), kPageBytes);
    const bool origin = region.origin != nullptr;
    UniqueFd memory =
        origin ? *os::reopen(region.memory.fd(), O_RDONLY) : UniqueFd(::dup(region.memory.fd()));
    void* address =
        ::mmap(reinterpret_cast<void*>(at), size, origin ? PROT_READ : PROT_READ | PROT_WRITE,
               (origin ? MAP_PRIVATE : MAP_SHARED) | MAP_FIXED | MAP_NORESERVE, memory.get(),
               static_cast<off_t>(first) << kPageShift);
    if (address == MAP_FAILED) std::abort();
    uffdio_register argument{};
    argument.range = {at, size};
    argument.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
                    (origin ? 0 : UFFDIO_REGISTER_MODE_WP);
    if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &argument) != 0) std::abort();
    migrate::View view;
    view.userfault = uffd_.get();
    view.address = at;
    view.first_page = first;
    view.page_count = pages;
    views_.push_back(loop_.add_view(region, view));
    return views_.back();
  }

  // Maps a page, which lies in its region's ordinary memory by now, over the one that was there.
  void map_aside(const migrate::View& view, std::uint32_t page) {
    const std::uint64_t at = view.address_of(page);
    // Not by libc: to a sanitizer that is a race with the threads that use the page meanwhile.
    const long mapped = ::syscall(SYS_mmap, at, kPageBytes, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_FIXED | MAP_NORESERVE, view.region->aside.fd(),
                                  static_cast<off_t>(page) << kPageShift);
    if (mapped < 0) std::abort();
    uffdio_register argument{};
    argument.range = {at, kPageBytes};
    argument.mode =
        UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
    if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &argument) != 0) std::abort();
  }

  void unmap(migrate::View& view) {
    ::munmap(reinterpret_cast<void*>(view.address), static_cast<std::size_t>(view.page_count)
                                                        << kPageShift);
    std::erase(views_, &view);
    loop_.remove_view(view);
  }

  static std::uint8_t* bytes(const migrate::View& view) {
    return reinterpret_cast<std::uint8_t*>(view.address);
  }

  // Runs engine code on threads while the loop serves them, until all have returned.
  void run(std::vector<std::function<void()>> bodies) {
    std::atomic<std::size_t> left{bodies.size()};
    std::vector<std::thread> threads;
    // A thread that ends wakes the loop: run_once() waits for a completion.
    threads.reserve(bodies.size());
    int pipe_fds[2];
    if (::pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
    UniqueFd read_end(pipe_fds[0]);
    UniqueFd write_end(pipe_fds[1]);
    os::Watch wake;
    wake.start(
        loop_.ring(), read_end.get(), nullptr, [](void*, std::uint32_t) {}, [](void*) {});
    for (auto& body : bodies) {
      threads.emplace_back([&left, &body, fd = write_end.get()] {
        body();
        left.fetch_sub(1, std::memory_order_release);
        (void)!::write(fd, "x", 1);
      });
    }
    while (left.load(std::memory_order_acquire) > 0) {
      if (!loop_.run_once().ok()) std::abort();
    }
    for (auto& thread : threads) thread.join();
    wake.stop();
    while (!wake.idle()) (void)loop_.run_once();
  }
  void run(std::function<void()> body) { run(std::vector<std::function<void()>>{std::move(body)}); }

 private:
  void on_faults(std::span<const os::Fault> faults) {
    for (const os::Fault& fault : faults) {
      for (migrate::View* view : views_) {
        const std::uint64_t size = static_cast<std::uint64_t>(view->page_count) << kPageShift;
        if (fault.address - view->address < size) loop_.fault(*view, fault, os::now_ns());
      }
    }
  }

  loop::Loop& loop_;
  UniqueFd uffd_;
  os::FaultReader reader_;
  std::vector<migrate::View*> views_;
  bool usable_ = false;
};

// A file that is gone when the test is.
class TemporaryFile {
 public:
  explicit TemporaryFile(const char* name)
      : path_(std::string(::getenv("TMPDIR") != nullptr ? ::getenv("TMPDIR") : "/tmp") + "/kvmem-" +
              name + "-" + std::to_string(::getpid())) {
    ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace kvmem::test

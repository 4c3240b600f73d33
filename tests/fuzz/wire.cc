// A client that sends anything: the daemon answers, refuses or hangs up, goes on serving the next
// one, and is in order when it stops.
//
// Input: steps, each a byte and up to a request's size of bytes:
//   bits 0-1  descriptors beside the message: none, as Arm wants them, memory, others
//   bit 2     the message is cut short
//   bit 3     an answer is waited for
//   bit 4     the version is made right
//   bit 5     no message: the bytes are written to the memory that the daemon gave
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "os/log.h"
#include "os/socket.h"
#include "os/timer.h"
#include "server/server.h"

namespace {

using namespace kvmem;

class Daemon {
 public:
  Daemon()
      : folder_(std::filesystem::temp_directory_path() /
                ("kvmem-fuzz-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    os::set_log_level(os::Severity::kError);
    loop::LoopOptions options;
    options.dram_pages = 64;
    options.store_path = folder_ + "/store";
    options.store_bytes = std::uint64_t{512} << 20;
    auto loop = loop::Loop::create(options);
    if (!loop.ok()) std::abort();
    loop_ = *std::move(loop);
    auto listener = os::listen_at(folder_ + "/sock", 0600);
    if (!listener.ok()) std::abort();
    config::Config config;
    config.dram.budget_bytes = 64 * kPageBytes;
    config.nvme.path = options.store_path;
    config.cache.dram_bytes = 16 * kPageBytes;
    config.cache.store_bytes = 64 * kPageBytes;
    config.daemon.runtime_dir = folder_;
    config.quota = {64 * kPageBytes, 64 * kPageBytes, 8, 16};
    server_ = std::make_unique<server::Server>(
        *loop_, *std::move(listener), folder_, config,
        probe::Probes::start({.enabled = false, .store_path = "", .gpu_driver = ""}));
    if (!server_->start().ok()) std::abort();
    tick();
  }
  ~Daemon() {
    stopping_ = true;
    timer_.stop();
    server_->stop();
    while (timer_.busy()) turn();
    server_.reset();
    loop_.reset();
    std::filesystem::remove_all(folder_);
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  UniqueFd connect() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof address.sun_path, "%s/sock", folder_.c_str());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
      std::abort();
    return fd;
  }
  void turn() {
    if (!loop_->run_once().ok()) std::abort();
  }
  // Until it has an answer, was hung up on, or for long enough.
  void wait_for(int fd) {
    for (int turns = 0; turns < 64; ++turns) {
      pollfd p{fd, POLLIN, 0};
      if (::poll(&p, 1, 0) > 0) return;
      turn();
    }
  }
  bool is_empty() const { return server_->sessions().empty(); }

 private:
  void tick() {
    if (stopping_) return;
    server_->housekeep(0);
    timer_.start(loop_->ring(), 200'000, this,
                 [](void* self) { static_cast<Daemon*>(self)->tick(); });
  }

  const std::string folder_;
  std::unique_ptr<loop::Loop> loop_;
  std::unique_ptr<server::Server> server_;
  os::Timer timer_;
  bool stopping_ = false;
};

enum class Descriptors : unsigned { kNone, kArm, kMemory, kOthers };

std::vector<UniqueFd> make(Descriptors what) {
  std::vector<UniqueFd> fds;
  const auto memory = [] { return UniqueFd(::memfd_create("fuzz", MFD_CLOEXEC)); };
  const auto null = [] { return UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC)); };
  switch (what) {
    case Descriptors::kNone:
      break;
    case Descriptors::kArm: {
      uffdio_api api{};
      api.api = UFFD_API;
      fds.emplace_back(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
      (void)::ioctl(fds[0].get(), UFFDIO_API, &api);
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
      fds.emplace_back(ends[0]);
      ::close(ends[1]);
      break;
    }
    case Descriptors::kMemory:
      for (int i = 0; i < 3; ++i) fds.push_back(memory());
      break;
    case Descriptors::kOthers:
      fds.push_back(null());
      fds.push_back(memory());
      break;
  }
  return fds;
}

class Client {
 public:
  explicit Client(Daemon& daemon) : daemon_(daemon), socket_(daemon.connect()) {}

  void send(const wire::Request& request, std::size_t bytes, Descriptors what) {
    const std::vector<UniqueFd> owned = make(what);
    std::vector<int> fds;
    for (const UniqueFd& fd : owned) fds.push_back(fd.get());
    (void)os::send(socket_.get(), std::as_bytes(std::span(&request, 1)).first(bytes), fds);
  }
  void wait() { daemon_.wait_for(socket_.get()); }
  // The last descriptor of an answer is memory shared with the daemon, if it can be written.
  void read_answers() {
    std::array<std::byte, wire::kMessageMax> answer{};
    for (;;) {
      auto got = os::receive(socket_.get(), answer);
      if (!got.ok() || got->size_bytes == 0) return;
      if (got->fd_count > 0) shared_ = std::move(got->fds[got->fd_count - 1]);
    }
  }
  void write_shared(const std::uint8_t* bytes, std::size_t count) {
    if (shared_) (void)!::pwrite(shared_.get(), bytes, count, 0);
  }

 private:
  Daemon& daemon_;
  UniqueFd socket_;
  UniqueFd shared_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Daemon daemon;
  {
    Client client(daemon);
    while (size > 1) {
      const std::uint8_t how = *data;
      wire::Request request;
      const std::size_t n = std::min(size - 1, sizeof request);
      std::memcpy(static_cast<void*>(&request), data + 1, n);
      if ((how & 16) != 0) request.version = wire::kProtocolVersion;
      if ((how & 32) != 0) {
        client.write_shared(data + 1, n);
      } else {
        client.send(request, (how & 4) != 0 ? n : sizeof request, Descriptors{how & 3U});
      }
      if ((how & 8) != 0) client.wait();
      client.read_answers();
      data += 1 + n;
      size -= 1 + n;
    }
  }
  for (int turns = 0; !daemon.is_empty(); ++turns) {
    if (turns == 10'000) std::abort();  // a session that never ends
    daemon.turn();
  }
  return 0;
}

// The server against clients that are well-behaved, confused and hostile, over a real socket.

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "os/clock.h"
#include "os/socket.h"
#include "server/server.h"
#include "tests/unit/fake_engine.h"

namespace kvmem {
namespace {

using nlohmann::json;
using wire::Op;
using wire::Reply;
using wire::Request;

struct Answer {
  Reply reply;
  std::vector<UniqueFd> fds;
};

// A client's end: blocking, one request at a time.
class Client {
 public:
  explicit Client(const std::string& path)
      : fd_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    connected_ = ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    wait_at_most(20);
  }
  void wait_at_most(long seconds) {
    timeval limit{seconds, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  bool connected() const { return connected_; }
  int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

  bool send_raw(const void* bytes, std::size_t size, std::vector<int> fds = {}) {
    return os::send(fd_.get(), std::span(static_cast<const std::byte*>(bytes), size), fds).ok();
  }
  // error -ECONNRESET: the server hung up.
  Answer ask(const Request& request, std::vector<int> fds = {}) {
    Answer answer;
    if (!send_raw(&request, sizeof request, std::move(fds)) || !read_reply(answer))
      answer.reply.error = -ECONNRESET;
    return answer;
  }
  bool read_reply(Answer& answer) {
    char control[CMSG_SPACE(sizeof(int) * 4)];
    iovec part{&answer.reply, sizeof answer.reply};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC) !=
        static_cast<ssize_t>(sizeof answer.reply))
      return false;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      for (std::size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        answer.fds.emplace_back(fd);
      }
    }
    return true;
  }

 private:
  UniqueFd fd_;
  bool connected_ = false;
};

UniqueFd make_userfault() {
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                 UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
                 UFFD_FEATURE_MINOR_HUGETLBFS;
  if (!fd || ::ioctl(fd.get(), UFFDIO_API, &api) != 0) return {};
  return fd;
}

class ServerProtocol : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::temp_directory_path() / ("kvmem-server-" + std::to_string(::getpid()));
    std::filesystem::create_directories(directory_);
    socket_path_ = directory_ / "sock";
    userfault_ = make_userfault();
    if (!userfault_) GTEST_SKIP() << "userfaultfd is not permitted here";
    start();
  }
  void TearDown() override {
    stop();
    std::filesystem::remove_all(directory_);
  }

  // The daemon's thread: loop and server live and die on it.
  void start() {
    stop_.store(false);
    std::atomic<bool> ready{false};
    thread_ = std::thread([this, &ready] {
      loop::LoopOptions options;
      options.dram_pages = 16;
      options.store_path = directory_ / "store";
      options.store_bytes = 256 << 20;
      auto loop = loop::Loop::create(options);
      if (!loop.ok()) std::abort();
      config::Config config;
      config.quota.sessions_max = 8;
      config.quota.regions_max = 16;
      config.quota.per_uid_dram_bytes = 16 * kPageBytes;
      config.quota.per_uid_store_bytes = 256 << 20;
      auto listener = os::listen_at(socket_path_, 0600);
      if (!listener.ok()) std::abort();
      {
        server::Server server(
            **loop, *std::move(listener), directory_, config,
            probe::Probes::start({.enabled = false, .store_path = "", .gpu_driver = ""}));
        if (!server.start().ok()) std::abort();
        os::Timer tick;
        struct Tick {
          os::Timer* timer;
          os::Ring* ring;
          server::Server* server;
          static void fired(void* self) {
            auto* t = static_cast<Tick*>(self);
            t->server->housekeep(os::now_ns());
            t->timer->start(*t->ring, 20'000'000, t, &fired);
          }
        } state{&tick, &(*loop)->ring(), &server};
        tick.start((*loop)->ring(), 20'000'000, &state, &Tick::fired);
        ready.store(true);
        while (!stop_.load()) {
          if (!(*loop)->run_once().ok()) std::abort();
        }
        tick.stop();
        while (tick.busy()) (void)(*loop)->run_once();
        server.stop();
      }
      loop->reset();
    });
    while (!ready.load()) std::this_thread::yield();
  }
  void stop() {
    if (!thread_.joinable()) return;
    stop_.store(true);
    thread_.join();
    ::unlink(socket_path_.c_str());
  }

  struct Engine {
    Client client;
    UniqueFd agent;
    UniqueFd lease;
    std::uint64_t session_id = 0;
    explicit Engine(const std::string& path) : client(path) {}
  };
  std::unique_ptr<Engine> open_session(int userfault) {
    auto engine = std::make_unique<Engine>(socket_path_);
    Request hello;
    hello.op = Op::kHello;
    std::strcpy(hello.tag, "test");
    Answer welcome = engine->client.ask(hello);
    EXPECT_EQ(welcome.reply.error, 0) << welcome.reply.message;
    EXPECT_FALSE(welcome.fds.empty());
    if (!welcome.fds.empty()) engine->lease = std::move(welcome.fds.back());
    engine->session_id = welcome.reply.session_id;
    arm(*engine, userfault);
    return engine;
  }
  void arm(Engine& engine, int userfault) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    engine.agent = UniqueFd(pair[0]);
    UniqueFd theirs(pair[1]);
    Request request;
    request.op = Op::kArm;
    EXPECT_EQ(engine.client.ask(request, {userfault, theirs.get()}).reply.error, 0);
  }

  json status() {
    Client client(socket_path_);
    Request request;
    request.op = Op::kControl;
    Answer answer = client.ask(request);
    if (answer.reply.error != 0 || answer.fds.size() != 1) return {};
    std::string text(answer.reply.size_bytes, ' ');
    EXPECT_EQ(::pread(answer.fds[0].get(), text.data(), text.size(), 0),
              static_cast<ssize_t>(text.size()));
    return json::parse(text);
  }

  static std::uint8_t* reserve_pages(std::size_t pages) {
    void* reserve = ::mmap(nullptr, (pages + 1) * kPageBytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return reinterpret_cast<std::uint8_t*>(
        align_up(reinterpret_cast<std::uint64_t>(reserve), kPageBytes));
  }
  // As an engine does, before or after it says so.
  void map_pages(std::uint8_t* at, std::size_t pages, int memory, std::size_t first_page) {
    const std::size_t size = pages * kPageBytes;
    ASSERT_NE(::mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                     memory, static_cast<off_t>(first_page * kPageBytes)),
              MAP_FAILED);
    uffdio_register argument{};
    argument.range = {reinterpret_cast<std::uint64_t>(at), size};
    argument.mode =
        UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
    ASSERT_EQ(::ioctl(userfault_.get(), UFFDIO_REGISTER, &argument), 0);
  }

  std::filesystem::path directory_;
  std::string socket_path_;
  UniqueFd userfault_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
};

TEST_F(ServerProtocol, ARegionIsCreatedServedAndGivenBack) {
  auto engine = open_session(userfault_.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.size_bytes = 40 * kPageBytes - 5;
  Answer created = engine->client.ask(create);
  ASSERT_EQ(created.reply.error, 0) << created.reply.message;
  ASSERT_EQ(created.fds.size(), 2U);
  EXPECT_EQ(created.reply.page_count, 40U);
  const std::size_t size = 40 * kPageBytes;
  std::uint8_t* const at = reserve_pages(40);
  map_pages(at, 40, created.fds[0].get(), 0);
  Request mapped;
  mapped.op = Op::kRegionMapped;
  mapped.region_id = created.reply.region_id;
  mapped.address = reinterpret_cast<std::uint64_t>(at);
  ASSERT_EQ(engine->client.ask(mapped).reply.error, 0);
  for (unsigned round = 1; round < 3; ++round) {
    for (std::size_t page = 0; page < 40; ++page)
      at[page * kPageBytes + 77] = static_cast<std::uint8_t>(page * round);
    for (std::size_t page = 0; page < 40; ++page) {
      ASSERT_EQ(at[page * kPageBytes + 77], static_cast<std::uint8_t>(page * round));
    }
  }
  const json before = status();
  EXPECT_EQ(before["regions"].size(), 1U);
  EXPECT_LE(before["tiers"][0]["used_bytes"].get<std::uint64_t>(), 16 * kPageBytes);
  Request destroy;
  destroy.op = Op::kRegionDestroy;
  destroy.region_id = created.reply.region_id;
  ::munmap(at, size);
  EXPECT_EQ(engine->client.ask(destroy).reply.error, 0);
  json after = status();
  for (int i = 0; i < 1000 && after["tiers"][0]["used_bytes"] != 0; ++i) after = status();
  EXPECT_EQ(after["tiers"][0]["used_bytes"], 0);
  EXPECT_EQ(after["tiers"][1]["used_bytes"], 0);
}

TEST_F(ServerProtocol, PagesAtSeveralAddressesAreTheSamePages) {
  auto engine = open_session(userfault_.get());
  Request request;
  request.op = Op::kRegionCreate;
  request.size_bytes = 40 * kPageBytes;
  Answer created = engine->client.ask(request);
  ASSERT_EQ(created.reply.error, 0) << created.reply.message;
  const int memory = created.fds[0].get();
  std::uint8_t* const at = reserve_pages(40);
  map_pages(at, 40, memory, 0);
  request.op = Op::kRegionMapped;
  request.region_id = created.reply.region_id;
  request.address = reinterpret_cast<std::uint64_t>(at);
  ASSERT_EQ(engine->client.ask(request).reply.error, 0);

  request.op = Op::kRegionAlias;
  const auto alias = [&](std::uint64_t page, std::uint64_t count, std::uint64_t target) {
    request.first_page = page;
    request.page_count = count;
    request.origin_offset = target * kPageBytes;
    const int error = engine->client.ask(request).reply.error;
    if (error == 0) map_pages(at + page * kPageBytes, count, memory, target);
    return error;
  };
  // (16 frames: what is written leaves, and comes back at either address.)
  const auto write = [&](std::size_t page, unsigned value) {
    at[page * kPageBytes + 77] = static_cast<std::uint8_t>(value);
  };
  const auto read = [&](std::size_t page) { return unsigned{at[page * kPageBytes + 77]}; };
  ASSERT_EQ(alias(10, 6, 0), 0);
  for (unsigned round = 1; round < 4; ++round) {
    for (std::size_t page = 0; page < 6; ++page) write(round % 2 * 10 + page, 10 * round + page);
    for (std::size_t page = 16; page < 40; ++page) write(page, round);
    for (std::size_t page = 0; page < 6; ++page) {
      ASSERT_EQ(read(page), 10 * round + page);
      ASSERT_EQ(read(10 + page), 10 * round + page);
    }
  }
  // One in the middle is its own again, the one after it another's.
  ASSERT_EQ(alias(12, 1, 12), 0);
  ASSERT_EQ(alias(13, 1, 5), 0);
  EXPECT_EQ(read(12), 0U);
  write(12, 99);
  for (std::size_t page = 16; page < 40; ++page) write(page, page);
  EXPECT_EQ(read(12), 99U);
  EXPECT_EQ(read(2), 32U);
  for (const std::size_t page : {0, 1, 4, 5}) EXPECT_EQ(read(10 + page), 30 + page);
  EXPECT_EQ(read(13), 35U);

  EXPECT_EQ(alias(38, 3, 0), -EINVAL);
  EXPECT_EQ(alias(0, 3, 38), -EINVAL);
  EXPECT_EQ(alias(0, 0, 3), -EINVAL);
  EXPECT_EQ(alias(~std::uint64_t{0}, 1, 0), -EINVAL);
  EXPECT_EQ(alias(0, ~std::uint64_t{0}, 0), -EINVAL);
  request.origin_offset = 77;
  request.first_page = 0;
  request.page_count = 1;
  EXPECT_EQ(engine->client.ask(request).reply.error, -EINVAL);
  request.address += 1;
  EXPECT_LT(engine->client.ask(request).reply.error, 0);
  request.region_id += 1;
  EXPECT_EQ(engine->client.ask(request).reply.error, -ENOENT);

  engine.reset();
  json after = status();
  for (int i = 0; i < 1000 && !after["regions"].empty(); ++i) after = status();
  EXPECT_TRUE(after["regions"].empty());
  EXPECT_EQ(after["tiers"][0]["used_bytes"], 0);
}

TEST_F(ServerProtocol, NoMoreOfARegionIsWrittenThanItWasSaid) {
  auto engine = open_session(userfault_.get());
  Request request;
  request.op = Op::kRegionCreate;
  request.size_bytes = std::uint64_t{1} << 37;  // beyond any quota
  EXPECT_EQ(engine->client.ask(request).reply.error, -EDQUOT);
  request.host_bytes = 4 * kPageBytes;
  Answer created = engine->client.ask(request);
  ASSERT_EQ(created.reply.error, 0) << created.reply.message;
  // (And a quarter more, and 64 pages, for reads past the end.)
  constexpr std::size_t kLimit = 4 + 1 + 64;
  std::uint8_t* const at = reserve_pages(100);
  map_pages(at, 100, created.fds[0].get(), 0);
  request.op = Op::kRegionMapped;
  request.region_id = created.reply.region_id;
  request.address = reinterpret_cast<std::uint64_t>(at);
  ASSERT_EQ(engine->client.ask(request).reply.error, 0);
  for (std::size_t page = 0; page < kLimit; ++page) at[page * kPageBytes] = 1;
  // (A page that raises SIGBUS is one that the kernel cannot read for a system call.)
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  EXPECT_EQ(::write(writer.get(), at + 90 * kPageBytes, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  // What is dropped may be written elsewhere.
  request.op = Op::kDiscard;
  request.first_page = 3;
  request.page_count = 1;
  ASSERT_EQ(engine->client.ask(request).reply.error, 0);
  request.first_page = 90;
  ASSERT_EQ(engine->client.ask(request).reply.error, 0);
  at[91 * kPageBytes] = 1;
  EXPECT_EQ(at[0] + at[2 * kPageBytes] + at[91 * kPageBytes], 3);
}

TEST_F(ServerProtocol, AnEngineThatDiesGivesEverythingBack) {
  auto engine = open_session(userfault_.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.size_bytes = 8 * kPageBytes;
  for (int i = 0; i < 3; ++i) ASSERT_EQ(engine->client.ask(create).reply.error, 0);
  EXPECT_EQ(status()["regions"].size(), 3U);
  engine.reset();
  json after = status();
  for (int i = 0; i < 1000 && !after["regions"].empty(); ++i) after = status();
  EXPECT_TRUE(after["regions"].empty());
  EXPECT_TRUE(after["engines"].empty());
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "leases"));
}

TEST_F(ServerProtocol, AFileOfferedToTwoEnginesStaysForTheOneThatIsLeft) {
  const std::string path = directory_ / "model";
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(file.get(), 8 * kPageBytes), 0);
  auto first = open_session(userfault_.get());
  UniqueFd second_userfault = make_userfault();
  auto second = open_session(second_userfault.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.kind = wire::RegionKind::kOrigin;
  create.size_bytes = 8 * kPageBytes;
  const Answer one = first->client.ask(create, {file.get()});
  const Answer two = second->client.ask(create, {file.get()});
  ASSERT_EQ(one.reply.error, 0) << one.reply.message;
  ASSERT_EQ(two.reply.error, 0) << two.reply.message;
  EXPECT_EQ(one.reply.region_id, two.reply.region_id);
  first.reset();
  json state = status();
  for (int i = 0; i < 1000 && state["engines"].size() > 1; ++i) state = status();
  ASSERT_EQ(state["regions"].size(), 1U);
  Request mapped;
  mapped.op = Op::kRegionMapped;
  mapped.region_id = two.reply.region_id;
  mapped.address = std::uint64_t{1} << 40;
  EXPECT_EQ(second->client.ask(mapped).reply.error, 0);
  EXPECT_EQ(status()["regions"][0]["views"], 1);
  Request destroy;
  destroy.op = Op::kRegionDestroy;
  destroy.region_id = two.reply.region_id;
  EXPECT_EQ(second->client.ask(destroy).reply.error, 0);
  EXPECT_TRUE(status()["regions"].empty());
}

TEST_F(ServerProtocol, AFileThatTheEngineMayNotReadIsRefused) {
  const std::string path = directory_ / "secret";
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(file.get(), kPageBytes), 0);
  auto engine = open_session(userfault_.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.kind = wire::RegionKind::kOrigin;
  create.size_bytes = kPageBytes;
  UniqueFd by_path(::open(path.c_str(), O_PATH | O_CLOEXEC));
  EXPECT_EQ(engine->client.ask(create, {by_path.get()}).reply.error, -ENOTSUP);
  UniqueFd write_only(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(engine->client.ask(create, {write_only.get()}).reply.error, -ENOTSUP);
}

TEST_F(ServerProtocol, AnEngineThatHangsUpOnItsAnswerHarmsNobody) {
  for (int round = 0; round < 20; ++round) {
    UniqueFd userfault = make_userfault();
    auto engine = open_session(userfault.get());
    Request create;
    create.op = Op::kRegionCreate;
    create.size_bytes = 8 * kPageBytes;
    const Answer created = engine->client.ask(create);
    ASSERT_EQ(created.reply.error, 0);
    Request mapped;
    mapped.op = Op::kRegionMapped;
    mapped.region_id = created.reply.region_id;
    mapped.address = std::uint64_t{1} << 40;
    ASSERT_EQ(engine->client.ask(mapped).reply.error, 0);
    Request discard;
    discard.op = Op::kDiscard;
    discard.region_id = created.reply.region_id;
    discard.page_count = 8;
    ASSERT_TRUE(engine->client.send_raw(&discard, sizeof discard));
    ::shutdown(engine->client.fd(), SHUT_RD);
  }
  EXPECT_EQ(status()["regions"].size(), 0U);
}

TEST_F(ServerProtocol, AnEngineThatMakesItsDescriptorBlockBlocksNobody) {
  auto hostile = open_session(userfault_.get());
  ASSERT_EQ(::fcntl(userfault_.get(), F_SETFL, ::fcntl(userfault_.get(), F_GETFL) & ~O_NONBLOCK),
            0);
  auto* page = static_cast<std::uint8_t*>(
      ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  uffdio_register argument{};
  argument.range = {reinterpret_cast<std::uint64_t>(page), kPageBytes};
  argument.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(::ioctl(userfault_.get(), UFFDIO_REGISTER, &argument), 0);
  std::thread toucher([page] { *static_cast<volatile std::uint8_t*>(page) = 1; });
  for (int i = 0; i < 50; ++i) ASSERT_FALSE(status().empty());
  // Without the descriptor the touch is the kernel's again.
  hostile.reset();
  userfault_.reset();
  toucher.join();
}

TEST_F(ServerProtocol, NoOneResumesASessionWithoutItsLease) {
  auto engine = open_session(userfault_.get());
  const std::uint64_t id = engine->session_id;
  Client thief(socket_path_);
  Request hello;
  hello.op = Op::kHello;
  hello.flags = Request::kResume;
  hello.session_id = id;
  EXPECT_EQ(thief.ask(hello).reply.error, -ESTALE);
  UniqueFd other(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(thief.ask(hello, {other.get()}).reply.error, -ESTALE);
  // The lease itself does not help while the session is connected.
  EXPECT_EQ(thief.ask(hello, {engine->lease.get()}).reply.error, -EBUSY);
}

TEST_F(ServerProtocol, QuotasRefuseWithAWordOnTheRemedy) {
  auto engine = open_session(userfault_.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.size_bytes = kPageBytes;
  for (int i = 0; i < 16; ++i) ASSERT_EQ(engine->client.ask(create).reply.error, 0);
  const Answer refused = engine->client.ask(create);
  EXPECT_EQ(refused.reply.error, -EDQUOT);
  EXPECT_NE(std::strstr(refused.reply.message, "quota.regions_max"), nullptr);
  std::vector<std::unique_ptr<Client>> more;
  Request hello;
  hello.op = Op::kHello;
  for (int i = 0; i < 7; ++i) {
    more.push_back(std::make_unique<Client>(socket_path_));
    ASSERT_EQ(more.back()->ask(hello).reply.error, 0);
  }
  more.push_back(std::make_unique<Client>(socket_path_));
  const Answer full = more.back()->ask(hello);
  EXPECT_EQ(full.reply.error, -EUSERS);
  EXPECT_NE(std::strstr(full.reply.message, "quota.sessions_max"), nullptr);
  // Who only asks is answered all the same, however many engines there are.
  EXPECT_EQ(status()["regions"].size(), 16U);
}

// Connections that never say Hello are bounded on their own, and engines go on beside them.
// Of what its driver says a GPU has, 95 % are for engines.
TEST_F(ServerProtocol, EnginesShareAGpu) {
  constexpr std::uint64_t kTotal = 1000 << 20;
  auto first = open_session(userfault_.get());
  auto second = open_session(userfault_.get());
  const auto claim = [&](Engine& engine, std::uint64_t needed, std::uint64_t wanted) {
    Request request;
    request.op = Op::kGpuClaim;
    request.gpu[0] = 7;
    request.size_bytes = kTotal;
    request.hbm_bytes = needed << 20;
    request.hbm_wanted_bytes = wanted << 20;
    const Reply reply = engine.client.ask(request).reply;
    EXPECT_EQ(reply.error, 0) << reply.message;
    return std::pair{reply.size_bytes >> 20, reply.others_asked};
  };
  EXPECT_EQ(claim(*first, 800, 900), std::pair(std::uint64_t{900}, 0U));
  EXPECT_EQ(claim(*second, 300, 400), std::pair(std::uint64_t{50}, 1U));
  // The first is asked for what the second lacks, and gives it.
  wire::AgentCommand command;
  ASSERT_EQ(::recv(first->agent.get(), &command, sizeof command, 0),
            static_cast<ssize_t>(sizeof command));
  EXPECT_EQ(command.op, wire::AgentOp::kGiveBack);
  EXPECT_EQ(command.for_gpu.gpu[0], 7U);
  EXPECT_EQ(command.for_gpu.hbm_bytes, std::uint64_t{650} << 20);
  EXPECT_EQ(claim(*first, 650, 650).first, 650U);
  EXPECT_EQ(claim(*second, 300, 300).first, 300U);

  Request region;
  region.op = Op::kGpuRegion;
  region.gpu[0] = 7;
  region.address = 0x10000;
  region.size_bytes = region.hbm_bytes = 300 << 20;
  std::strcpy(region.tag, "kv");
  EXPECT_EQ(second->client.ask(region).reply.error, 0);
  json now = status();
  ASSERT_EQ(now["gpus"].size(), 1U);
  EXPECT_EQ(now["gpus"][0]["budget_bytes"], 950 << 20);
  EXPECT_EQ(now["gpus"][0]["claimed_bytes"], 950 << 20);
  ASSERT_EQ(now["gpu_regions"].size(), 1U);
  EXPECT_EQ(now["gpu_regions"][0]["tag"], "kv");
  for (unsigned n = 1; n < 20; ++n) {
    region.address = 0x10000 + n;
    EXPECT_EQ(second->client.ask(region).reply.error, n < 16 ? 0 : -EDQUOT) << n;
  }

  Request park;
  park.op = Op::kControl;
  park.control = wire::ControlOp::kPark;
  std::strcpy(park.tag, "nobody's");
  EXPECT_EQ(Client(socket_path_).ask(park).reply.error, -ENOENT);
  std::strcpy(park.tag, "kv");
  EXPECT_EQ(Client(socket_path_).ask(park).reply.error, 0);
  ASSERT_EQ(::recv(second->agent.get(), &command, sizeof command, 0),
            static_cast<ssize_t>(sizeof command));
  EXPECT_EQ(command.op, wire::AgentOp::kPark);
  EXPECT_STREQ(command.for_gpu.tag, "kv");

  // What a dead engine held is free.
  second->client.close();
  for (int n = 0; n < 500 && !status()["gpu_regions"].empty(); ++n) ::usleep(10'000);
  EXPECT_EQ(claim(*first, 950, 950).first, 950U);
  EXPECT_EQ(claim(*first, 0, 0).first, 0U);
  EXPECT_TRUE(status()["gpus"].empty());
}

// What an engine may hold is still its own while it has not come back to a new daemon, and nobody's
// once it is dead.
TEST_F(ServerProtocol, AGrantOutlivesTheDaemon) {
  const auto claim = [&](Engine& engine, std::uint64_t bytes, std::uint16_t flags = 0) {
    Request request;
    request.op = Op::kGpuClaim;
    request.flags = flags;
    request.gpu[0] = 7;
    request.size_bytes = 1000 << 20;
    request.hbm_bytes = request.hbm_wanted_bytes = bytes << 20;
    return engine.client.ask(request).reply.size_bytes >> 20;
  };
  auto first = open_session(userfault_.get());
  auto second = open_session(userfault_.get());
  EXPECT_EQ(claim(*first, 600), 600U);
  EXPECT_EQ(claim(*first, 500), 500U);
  EXPECT_EQ(claim(*second, 300), 300U);
  stop();
  start();
  EXPECT_EQ(status()["gpus"][0]["claimed_bytes"], 800 << 20);
  EXPECT_EQ(status()["gpus"][0]["absent_bytes"], 800 << 20);
  auto third = open_session(make_userfault().get());
  EXPECT_EQ(claim(*third, 400), 150U);

  first->client = Client(socket_path_);
  Request hello;
  hello.op = Op::kHello;
  hello.flags = Request::kResume;
  hello.session_id = first->session_id;
  ASSERT_EQ(first->client.ask(hello, {first->lease.get()}).reply.error, 0);
  arm(*first, userfault_.get());
  EXPECT_EQ(claim(*first, 500, Request::kExists), 500U);
  EXPECT_EQ(status()["gpus"][0]["absent_bytes"], 300 << 20);
  EXPECT_EQ(claim(*third, 400), 150U);
  second->lease.reset();  // it is dead
  for (int n = 0; n < 6000 && status()["gpus"][0]["absent_bytes"] != 0; ++n) ::usleep(10'000);
  EXPECT_EQ(claim(*third, 400), 400U);
}

TEST_F(ServerProtocol, IdleConnectionsAreBoundedAndCostNoSession) {
  auto engine = open_session(userfault_.get());
  std::vector<std::unique_ptr<Client>> idle;
  Request hello;
  hello.op = Op::kHello;
  for (int i = 0; i < 256; ++i) idle.push_back(std::make_unique<Client>(socket_path_));
  EXPECT_EQ(idle.front()->ask(hello).reply.error, 0);  // all of them were taken in
  idle.push_back(std::make_unique<Client>(socket_path_));
  EXPECT_EQ(idle.back()->ask(hello).reply.error, 0);  // the first has a session: a place is free
  idle.push_back(std::make_unique<Client>(socket_path_));
  idle.push_back(std::make_unique<Client>(socket_path_));
  Answer refused;
  ASSERT_TRUE(idle.back()->read_reply(refused));  // unasked
  EXPECT_EQ(refused.reply.error, -EBUSY);
  Request create;
  create.op = Op::kRegionCreate;
  create.size_bytes = kPageBytes;
  EXPECT_EQ(engine->client.ask(create).reply.error, 0);
}

TEST_F(ServerProtocol, HostileClientsAreRefusedAndTheServerGoesOn) {
  constexpr unsigned kSeed = 20261;
  std::printf("seed %u\n", kSeed);
  std::mt19937_64 random(kSeed);
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  UniqueFd memfd(::memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  for (int round = 0; round < 150; ++round) {
    std::unique_ptr<Engine> engine;
    Client raw(socket_path_);
    UniqueFd own_userfault = make_userfault();
    if (round % 2 == 0) engine = open_session(own_userfault.get());
    Client& client = engine != nullptr ? engine->client : raw;
    client.wait_at_most(1);  // who hands over its own end as the agent's has its answers read there
    for (int i = 0; i < 40; ++i) {
      Request request;
      auto* bytes = reinterpret_cast<std::uint8_t*>(&request);
      switch (random() % 40 == 0 ? 2 : random() % 2) {
        case 0:  // noise after a valid version
          for (std::size_t b = sizeof request.version; b < sizeof request; ++b)
            bytes[b] = static_cast<std::uint8_t>(random());
          request.op = static_cast<Op>(random() % 16);
          break;
        case 1:  // plausible, at the edges
          request.op = static_cast<Op>(1 + random() % 12);
          request.region_id = random() % 4;
          request.size_bytes = std::uint64_t{1} << random() % 64;
          request.first_page = random() % 3 == 0 ? ~std::uint64_t{0} : random() % 64;
          request.page_count = random() % 3 == 0 ? ~std::uint64_t{0} : random() % 64;
          request.address = (random() % 128) << 21;
          request.kind = static_cast<wire::RegionKind>(random() % 3);
          request.advice = static_cast<wire::Advice>(random() % 9);
          request.control = static_cast<wire::ControlOp>(random() % 12);
          break;
        default: {  // wrong size
          std::vector<std::uint8_t> junk(random() % 400);
          for (auto& b : junk) b = static_cast<std::uint8_t>(random());
          client.send_raw(junk.data(), junk.size());
          continue;
        }
      }
      std::vector<int> fds;
      for (unsigned n = random() % 4; n > 0; --n) {
        const std::array choices = {null.get(), memfd.get(), own_userfault.get(), client.fd()};
        fds.push_back(choices[random() % choices.size()]);
      }
      if (client.ask(request, fds).reply.error == -ECONNRESET) break;
    }
  }
  auto engine = open_session(userfault_.get());
  Request create;
  create.op = Op::kRegionCreate;
  create.size_bytes = kPageBytes;
  EXPECT_EQ(engine->client.ask(create).reply.error, 0);
}

}  // namespace
}  // namespace kvmem

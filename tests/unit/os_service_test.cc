#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "os/service.h"

namespace kvmem::os {
namespace {

// A service manager's end of NOTIFY_SOCKET, in the abstract namespace.
class Manager : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                             "LISTEN_PID", "LISTEN_FDNAMES"}) {
      ::unsetenv(name);
    }
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socklen_t size = sizeof(sa_family_t);  // autobind
    ASSERT_EQ(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    size = sizeof(address);
    ASSERT_EQ(::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    name_ = "@" + std::string(address.sun_path + 1, size - sizeof(sa_family_t) - 1);
  }
  std::string receive() {
    char buffer[256];
    const ssize_t n = ::recv(socket_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
    return n < 0 ? "" : std::string(buffer, static_cast<std::size_t>(n));
  }
  UniqueFd socket_;
  std::string name_;
};

TEST_F(Manager, WithoutOneEveryCallSucceeds) {
  Service service = Service::from_environment();
  EXPECT_FALSE(service.managed());
  EXPECT_TRUE(service.ready().ok());
  EXPECT_EQ(service.watchdog_interval_ns(), 0u);
  EXPECT_TRUE(service.take_listen_fds().empty());
}

TEST_F(Manager, HearsWhatItIsTold) {
  ::setenv("NOTIFY_SOCKET", name_.c_str(), 1);
  Service service = Service::from_environment();
  EXPECT_TRUE(service.managed());
  EXPECT_EQ(::getenv("NOTIFY_SOCKET"), nullptr);  // no child takes it for its own
  ASSERT_TRUE(service.ready().ok());
  EXPECT_EQ(receive(), "READY=1");
  ASSERT_TRUE(service.status("3 engines").ok());
  EXPECT_EQ(receive(), "STATUS=3 engines");
  ASSERT_TRUE(service.reloading().ok());
  EXPECT_EQ(receive().find("RELOADING=1\nMONOTONIC_USEC="), 0u);
}

TEST_F(Manager, ThatDoesNotReadNeverBlocksTheLoop) {
  ::setenv("NOTIFY_SOCKET", name_.c_str(), 1);
  Service service = Service::from_environment();
  Status status;
  for (int i = 0; i < 100'000 && status.ok(); ++i) status = service.watchdog();
  EXPECT_EQ(status.code(), Code::kBusy);
}

TEST_F(Manager, ThatIsGoneIsNone) {
  ::setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
  EXPECT_FALSE(Service::from_environment().managed());
}

TEST_F(Manager, AsksForAWatchdogOfThisProcessOnly) {
  ::setenv("NOTIFY_SOCKET", name_.c_str(), 1);
  ::setenv("WATCHDOG_USEC", "30000000", 1);
  ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
  EXPECT_EQ(Service::from_environment().watchdog_interval_ns(), 30'000'000'000u);

  ::setenv("NOTIFY_SOCKET", name_.c_str(), 1);
  ::setenv("WATCHDOG_USEC", "30000000", 1);
  ::setenv("WATCHDOG_PID", "1", 1);
  EXPECT_EQ(Service::from_environment().watchdog_interval_ns(), 0u);
}

TEST_F(Manager, SocketsOfAnotherProcessAreNotTaken) {
  ::setenv("LISTEN_FDS", "1", 1);
  ::setenv("LISTEN_PID", "1", 1);
  EXPECT_TRUE(Service::from_environment().take_listen_fds().empty());
}

TEST_F(Manager, HandsOverSocketsFromThree) {
  // In a child, whose descriptor 3 is nobody else's.
  EXPECT_EXIT(
      {
        const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
        if (fd != 3 && ::dup2(fd, 3) != 3) ::_exit(2);
        ::setenv("LISTEN_FDS", "1", 1);
        ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
        Service service = Service::from_environment();
        const auto fds = service.take_listen_fds();
        if (fds.size() != 1 || fds[0].get() != 3) ::_exit(3);
        if (::fcntl(3, F_GETFD) != FD_CLOEXEC) ::_exit(4);
        ::_exit(0);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace kvmem::os

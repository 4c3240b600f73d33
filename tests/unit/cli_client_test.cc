#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "base/unique_handle.h"
#include "cli/client.h"
#include "cli/exit_code.h"

namespace kvmem::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Target, RegionPageAndRange) {
  Target t;
  ASSERT_TRUE(parse_target("7", &t));
  EXPECT_EQ(t.region_id, 7u);
  EXPECT_EQ(t.page_count, 0u);  // the whole region
  ASSERT_TRUE(parse_target("7:12", &t));
  EXPECT_EQ(t.first_page, 12u);
  EXPECT_EQ(t.page_count, 1u);
  ASSERT_TRUE(parse_target("7:12-15", &t));
  EXPECT_EQ(t.first_page, 12u);
  EXPECT_EQ(t.page_count, 4u);
}

TEST(Target, NothingElse) {
  Target t;
  for (const char* text : {"", ":", "x", "-1", "7:", "7:-", "7:1-", "7:3-2", "7:1-2x", "7 ",
                           "7:1:2", "99999999999999999999", "7:0-99999999999"}) {
    EXPECT_FALSE(parse_target(text, &t)) << text;
  }
}

// Listens at `path` and gives each test's script the one connection.
class Daemon : public ::testing::Test {
 protected:
  using Script = std::function<void(int fd, const wire::Request& request)>;

  void SetUp() override {
    std::string name = ::testing::TempDir() + "/kvmem_cli_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ + "/s";
  }
  void TearDown() override {
    if (thread_.joinable()) thread_.join();
    std::filesystem::remove_all(folder_);
  }

  void listen(int type = SOCK_SEQPACKET) {
    listener_ = UniqueFd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(::listen(listener_.get(), 1), 0);
  }
  void answer_with(Script script) {
    listen();
    thread_ = std::thread([this, script = std::move(script)] {
      const UniqueFd fd(::accept(listener_.get(), nullptr, nullptr));
      wire::Request request;
      if (::recv(fd.get(), &request, sizeof(request), 0) != sizeof(request)) return;
      request_ = request;
      script(fd.get(), request);
    });
  }
  static void send(int fd, const wire::Reply& reply, std::size_t size_bytes, int passed_fd) {
    wire::Reply copy = reply;
    iovec part{&copy, size_bytes};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (passed_fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      cmsghdr* const c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(c), &passed_fd, sizeof(int));
    }
    EXPECT_GT(::sendmsg(fd, &message, MSG_NOSIGNAL), 0);
  }
  static UniqueFd memory_with(const std::string& text) {
    UniqueFd fd(::memfd_create("json", MFD_CLOEXEC));
    EXPECT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    return fd;
  }
  void answer_json(const std::string& text, std::uint64_t claimed_bytes) {
    answer_with([text, claimed_bytes](int fd, const wire::Request&) {
      const UniqueFd memory = memory_with(text);
      wire::Reply reply;
      reply.size_bytes = claimed_bytes;
      send(fd, reply, sizeof(reply), memory.get());
    });
  }
  Answer ask_status(unsigned timeout_ms = 2000) {
    return ask(path_, {wire::ControlOp::kStatus, {}, {}}, timeout_ms);
  }

  std::string folder_;
  std::string path_;
  UniqueFd listener_;
  std::thread thread_;
  wire::Request request_;
};

TEST_F(Daemon, AnswersWithJson) {
  const std::string text = R"({"tiers":[]})";
  answer_json(text, text.size());
  const Answer answer = ask_status();
  ASSERT_TRUE(answer.ok()) << answer.error;
  EXPECT_TRUE(answer.json.at("tiers").is_array());
}

TEST_F(Daemon, HearsWhatIsAsked) {
  answer_json("{}", 2);
  const Answer answer = ask(path_, {wire::ControlOp::kDrain, {3, 4, 5}, "nvme"});
  EXPECT_TRUE(answer.ok()) << answer.error;
  thread_.join();
  EXPECT_EQ(request_.op, wire::Op::kControl);
  EXPECT_EQ(request_.control, wire::ControlOp::kDrain);
  EXPECT_EQ(request_.region_id, 3u);
  EXPECT_EQ(request_.first_page, 4u);
  EXPECT_EQ(request_.page_count, 5u);
  EXPECT_STREQ(request_.tag, "nvme");
  EXPECT_EQ(request_.version, wire::kProtocolVersion);
}

TEST_F(Daemon, RefusalIsPassedOnWithoutControlCharacters) {
  answer_with([](int fd, const wire::Request&) {
    wire::Reply reply;
    reply.error = -ENOENT;
    std::strcpy(reply.message, "no region 9;\033[31m see kvmemctl regions");
    send(fd, reply, sizeof(reply), -1);
  });
  const Answer answer = ask_status();
  EXPECT_EQ(answer.exit_code, kExitFailed);
  EXPECT_EQ(answer.error, "no region 9;?[31m see kvmemctl regions");
}

TEST_F(Daemon, RefusalOfPermissionHasItsOwnStatus) {
  answer_with([](int fd, const wire::Request&) {
    wire::Reply reply;
    reply.error = -EPERM;
    std::memset(reply.message, 'x', sizeof(reply.message));  // not ended by 0
    send(fd, reply, sizeof(reply), -1);
  });
  const Answer answer = ask_status();
  EXPECT_EQ(answer.exit_code, kExitPermission);
  EXPECT_EQ(answer.error.size(), sizeof(wire::Reply::message) - 1);
}

TEST_F(Daemon, ThatClaimsMoreThanItSendsIsNotBelieved) {
  answer_json("{}", 1 << 20);
  EXPECT_THAT(ask_status().error, HasSubstr("cannot be read"));
}

TEST_F(Daemon, ThatClaimsTooMuchIsNotBelieved) {
  answer_json("{}", kJsonMaxBytes + 1);
  EXPECT_THAT(ask_status().error, HasSubstr("cannot be read"));
}

TEST_F(Daemon, ThatSendsNoJsonIsNotBelieved) {
  answer_json("{\"a\":", 5);
  EXPECT_EQ(ask_status().exit_code, kExitFailed);
}

TEST_F(Daemon, ThatSendsNoMemoryIsNotBelieved) {
  answer_with([](int fd, const wire::Request&) { send(fd, {}, sizeof(wire::Reply), -1); });
  EXPECT_EQ(ask_status().exit_code, kExitFailed);
}

TEST_F(Daemon, OfAnotherVersionIsNamedSo) {
  answer_with([](int fd, const wire::Request&) {
    wire::Reply reply;
    reply.version = wire::kProtocolVersion + 1;
    send(fd, reply, sizeof(reply), -1);
  });
  EXPECT_THAT(ask_status().error, HasSubstr("another version"));
}

TEST_F(Daemon, WithAShortReplyIsNamedSo) {
  answer_with([](int fd, const wire::Request&) { send(fd, {}, sizeof(wire::Reply) - 8, -1); });
  EXPECT_THAT(ask_status().error, HasSubstr("another version"));
}

TEST_F(Daemon, ThatHangsUpIsNoDaemon) {
  answer_with([](int, const wire::Request&) {});
  const Answer answer = ask_status();
  EXPECT_EQ(answer.exit_code, kExitNoDaemon);
  EXPECT_THAT(answer.error, HasSubstr("hung up"));
}

TEST_F(Daemon, ThatNeverAnswersIsGivenUpInTime) {
  listen();
  const Answer answer = ask_status(100);
  EXPECT_EQ(answer.exit_code, kExitNoDaemon);
  EXPECT_THAT(answer.error, HasSubstr("does not answer"));
}

TEST_F(Daemon, ThatIsNotThereIsToldHowToStart) {
  const Answer answer = ask_status();
  EXPECT_EQ(answer.exit_code, kExitNoDaemon);
  EXPECT_THAT(answer.error, AllOf(HasSubstr("systemctl start kvmemd"), HasSubstr("kvmemctl run")));
}

TEST_F(Daemon, ThatDiedIsToldHowToRestart) {
  listen();
  listener_.reset();
  const Answer answer = ask_status();
  EXPECT_EQ(answer.exit_code, kExitNoDaemon);
  EXPECT_THAT(answer.error, HasSubstr("is gone"));
}

TEST_F(Daemon, OfAnotherKindIsNamedSo) {
  listen(SOCK_STREAM);
  EXPECT_THAT(ask_status().error, HasSubstr("not kvmemd's socket"));
}

TEST_F(Daemon, PathThatIsTooLongIsAUsageFault) {
  EXPECT_EQ(ask("/" + std::string(200, 'a'), {}).exit_code, kExitUsage);
  EXPECT_EQ(ask("", {}).exit_code, kExitUsage);
}

TEST_F(Daemon, WithoutPermissionNamesTheGroupButNeverRoots) {
  listen();
  if (::geteuid() != 0) {
    ASSERT_EQ(::chmod(path_.c_str(), 0), 0);
    EXPECT_EQ(ask_status().exit_code, kExitPermission);
    return;
  }
  // Root passes every permission: ask as nobody, in a child.
  ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
  ASSERT_EQ(::chmod(path_.c_str(), 0660), 0);
  const auto nobody_is_told = [&](const char* words) {
    if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(9);
    const Answer answer = ask_status();
    const bool named = answer.error.find(words) != std::string::npos &&
                       answer.error.find("YOU root") == std::string::npos;
    ::_exit(answer.exit_code == kExitPermission && named ? 0 : 1);
  };
  EXPECT_EXIT(nobody_is_told("belongs to root alone"), ::testing::ExitedWithCode(0), "");
  ASSERT_EQ(::chown(path_.c_str(), 0, 6), 0);  // Debian's group "disk"
  EXPECT_EXIT(nobody_is_told("adduser YOU disk"), ::testing::ExitedWithCode(0), "");
}

TEST(SocketPath, OptionThenEnvironmentThenOwnDaemonThenSystem) {
  ::unsetenv("KVMEM_SOCKET");
  ::setenv("XDG_RUNTIME_DIR", "/nonexistent", 1);
  EXPECT_EQ(socket_path(""), "/run/kvmem/kvmemd.sock");
  ::setenv("KVMEM_SOCKET", "/tmp/env.sock", 1);
  EXPECT_EQ(socket_path(""), "/tmp/env.sock");
  EXPECT_EQ(socket_path("/tmp/option.sock"), "/tmp/option.sock");
  ::unsetenv("KVMEM_SOCKET");
}

}  // namespace
}  // namespace kvmem::cli

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "base/unique_handle.h"
#include "cli/process.h"
#include "cli/scratch.h"
#include "cli/sweeper.h"

namespace kvmem::cli {
namespace {

namespace fs = std::filesystem;

TEST(Preload, KeepsWhatIsThereAndNamesKvmemOnce) {
  EXPECT_EQ(preload_with("/l/libkvmem.so.0", ""), "/l/libkvmem.so.0");
  EXPECT_EQ(preload_with("/l/libkvmem.so.0", "/x/libjemalloc.so.2 /y/b.so"),
            "/l/libkvmem.so.0:/x/libjemalloc.so.2:/y/b.so");
  EXPECT_EQ(preload_with("/l/libkvmem.so.0", "/old/libkvmem.so:/y/b.so"),
            "/l/libkvmem.so.0:/y/b.so");
}

TEST(Preload, DaemonIsStartedWithoutIt) {
  EXPECT_EQ(preload_without_kvmem("/l/libkvmem.so.0"), std::nullopt);
  EXPECT_EQ(preload_without_kvmem(""), std::nullopt);
  EXPECT_EQ(preload_without_kvmem("/l/libkvmem.so:/y/b.so"), "/y/b.so");
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/kvmem_process_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  void TearDown() override { fs::remove_all(path_); }

  int status_of(Program program) {
    const Started started = start(program);
    EXPECT_EQ(started.error, 0);
    int status = -1;
    EXPECT_EQ(::waitpid(started.pid, &status, 0), started.pid);
    return status;
  }
  static Program shell(const std::string& script) {
    Program program;
    program.argv = {"sh", "-c", script};
    return program;
  }
  static std::string content(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  std::string path_;
};

using Start = Folder;

TEST_F(Start, ProgramThatIsNotThereIsAnErrorAndNoChild) {
  Program program;
  program.argv = {"/nonexistent/engine"};
  EXPECT_EQ(start(program).error, ENOENT);
  program.argv = {path_};
  EXPECT_EQ(start(program).error, EACCES);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST_F(Start, EnvironmentIsReplacedAddedAndRemoved) {
  ::setenv("KV_TEST_A", "old", 1);
  ::setenv("KV_TEST_B", "old", 1);
  Program program =
      shell("test \"$KV_TEST_A\" = new && test -z \"${KV_TEST_B+x}\" && test \"$KV_TEST_C\" = c");
  program.environment = {{"KV_TEST_A", "new"}, {"KV_TEST_B", std::nullopt}, {"KV_TEST_C", "c"}};
  EXPECT_EQ(status_of(program), 0);
}

TEST_F(Start, ChildHasTheSignalMaskItIsGiven) {
  sigset_t all;
  sigset_t old;
  ::sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, &old);
  const int status = status_of(shell("kill -TERM $$; exit 0"));
  ::sigprocmask(SIG_SETMASK, &old, nullptr);
  EXPECT_TRUE(WIFSIGNALED(status));
}

TEST_F(Start, DetachedChildHasItsOwnSessionAndOnlyItsDescriptors) {
  const UniqueFd log(::open((path_ + "/log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const UniqueFd passed(::open((path_ + "/passed").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const UniqueFd leaked(::fcntl(log.get(), F_DUPFD, 20));  // no close-on-exec
  // The shell's own session leader is itself; field 6 of stat is the session.
  Program program = shell(
      "cut -d' ' -f6 /proc/$$/stat; echo $$; ls /proc/$$/fd | tr '\\n' ' '; echo hello >&3; cat");
  program.detached = true;
  program.log_fd = log.get();
  program.inherited_fd = passed.get();
  EXPECT_EQ(status_of(program), 0);
  std::string session;
  std::string pid;
  std::string fds;
  std::ifstream in(path_ + "/log");
  std::getline(in, session);
  std::getline(in, pid);
  std::getline(in, fds);
  EXPECT_EQ(session, pid);
  EXPECT_EQ(fds, "0 1 2 3 ");
  EXPECT_EQ(content(path_ + "/passed"), "hello\n");
}

using Scratch = Folder;

TEST_F(Scratch, IsPrivateAndGoesWithItsOwner) {
  std::string made;
  {
    Result<ScratchDir> scratch = ScratchDir::create(path_ + "/new/root");
    ASSERT_TRUE(scratch.ok());
    made = scratch->path();
    EXPECT_EQ(fs::status(made).permissions(), fs::perms::owner_all);
  }
  EXPECT_FALSE(fs::exists(made));
}

TEST_F(Scratch, LeftOverOfADeadRunIsSweptAndALiveOnesIsNot) {
  Result<ScratchDir> alive = ScratchDir::create(path_);
  ASSERT_TRUE(alive.ok());
  const std::string dead = path_ + "/kvmem-run-dead";
  const std::string other = path_ + "/somebody-elses";
  for (const std::string& folder : {dead, other}) {
    fs::create_directory(folder);
    std::ofstream(folder + "/lock") << "";
  }
  Result<ScratchDir> next = ScratchDir::create(path_);
  ASSERT_TRUE(next.ok());
  EXPECT_TRUE(fs::exists(alive->path()));
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(Scratch, KeptFolderStays) {
  std::string made;
  {
    Result<ScratchDir> scratch = ScratchDir::create(path_);
    ASSERT_TRUE(scratch.ok());
    made = scratch->path();
    scratch->keep();
  }
  EXPECT_TRUE(fs::exists(made));
}

TEST_F(Scratch, MovedFolderIsRemovedOnce) {
  Result<ScratchDir> scratch = ScratchDir::create(path_);
  ASSERT_TRUE(scratch.ok());
  ScratchDir moved = *std::move(scratch);
  EXPECT_TRUE(scratch->empty());
  EXPECT_TRUE(fs::exists(moved.path()));
  ScratchDir other;
  other = std::move(moved);
  EXPECT_TRUE(fs::exists(other.path()));
}

TEST(Filesystem, InMemoryIsKnown) {
  if (!fs::exists("/dev/shm")) GTEST_SKIP();
  EXPECT_TRUE(is_memory_filesystem("/dev/shm"));
  EXPECT_FALSE(is_memory_filesystem("/proc"));
}

class Sweep : public Folder {
 protected:
  void SetUp() override {
    Folder::SetUp();
    made_ = path_ + "/made";
    fs::create_directory(made_);
  }
  // Ends when the file appears, or when killed.
  Started sleeper() {
    Program program;
    program.argv = {"sleep", "60"};
    return start(program);
  }
  std::string made_;
};

TEST_F(Sweep, AfterAFarewellNothingIsTouched) {
  Sweeper sweeper = Sweeper::start({made_}, {});
  const Started daemon = sleeper();
  sweeper.daemon_is(daemon.pid);
  sweeper.dismiss();
  EXPECT_TRUE(fs::exists(made_));
  EXPECT_EQ(::waitpid(daemon.pid, nullptr, WNOHANG), 0);
  ::kill(daemon.pid, SIGKILL);
  ::waitpid(daemon.pid, nullptr, 0);
}

TEST_F(Sweep, WithoutOneItWaitsForTheEngineThenStopsTheDaemonAndRemovesFiles) {
  pid_t sweeper_pid = -1;
  const Started engine = sleeper();
  const Started daemon = sleeper();
  {
    Sweeper sweeper = Sweeper::start({made_}, {});
    sweeper_pid = sweeper.pid();
    ASSERT_GT(sweeper_pid, 0);
    sweeper.engine_is(engine.pid);
    sweeper.daemon_is(daemon.pid);
  }  // as if kvmemctl had been killed: the pipe closes
  ::usleep(100'000);
  EXPECT_EQ(::waitpid(daemon.pid, nullptr, WNOHANG), 0);  // the engine needs it still
  EXPECT_TRUE(fs::exists(made_));
  ::kill(engine.pid, SIGKILL);
  ::waitpid(engine.pid, nullptr, 0);
  int status = 0;
  EXPECT_EQ(::waitpid(daemon.pid, &status, 0), daemon.pid);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  EXPECT_EQ(::waitpid(sweeper_pid, nullptr, 0), sweeper_pid);
  EXPECT_FALSE(fs::exists(made_));
}

TEST_F(Sweep, HoldsTheLocksItIsGiven) {
  const std::string lock_path = path_ + "/lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::flock(lock.get(), LOCK_EX | LOCK_NB), 0);
  Sweeper sweeper = Sweeper::start({}, {lock.get()});
  lock.reset();
  const UniqueFd again(::open(lock_path.c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_NE(::flock(again.get(), LOCK_EX | LOCK_NB), 0);
  sweeper.dismiss();
  EXPECT_EQ(::flock(again.get(), LOCK_EX | LOCK_NB), 0);
}

}  // namespace
}  // namespace kvmem::cli

/* A fork that fails leaves nothing behind: neither held writes nor a clone that waits for a child.
 * usage: failed_fork [SEED] */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "pattern.h"

/* From now on this thread cannot fork. */
static void refuse_forks(void) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
  REQUIRE(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

static void* fail(void* buffer) {
  refuse_forks();
  for (uint64_t i = 2; i < 5; ++i) {
    REQUIRE(fork() == -1 && errno == EAGAIN, "fork fails, and says why");
    check(buffer, 0, 64 * MIB, i - 1, "after a failed fork");
    fill(buffer, 0, 64 * MIB, i);
  }
  return NULL;
}

int main(int argc, char** argv) {
  take_seed(argc, argv, 1);
  unsigned char* p = malloc(64 * MIB);
  REQUIRE(p != NULL, "malloc");
  require_managed(p);
  fill(p, 0, 64 * MIB, 1);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, fail, p) == 0 && pthread_join(thread, NULL) == 0, "thread");
  const pid_t child = fork();
  REQUIRE(child >= 0, "fork");
  if (child == 0) {
    check(p, 0, 64 * MIB, 4, "the child");
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0, "child: %x", status);
  check(p, 0, 64 * MIB, 4, "the parent");
  free(p);
  printf("ok failed forks leave nothing behind\n");
  return 0;
}

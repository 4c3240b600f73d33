/* The kernel reads from and writes to cold memory: its faults are served like the program's.
 * usage: transfers MIB FOLDER [SEED] */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "pattern.h"

static size_t g_size;
static int g_socket[2];

static void* drain(void* target) {
  for (size_t at = 0; at < g_size;) {
    const ssize_t n = read(g_socket[1], (char*)target + at, 3 * MIB + 5);
    REQUIRE(n > 0, "read from a socket");
    at += (size_t)n;
  }
  return NULL;
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 3, "usage: transfers MIB FOLDER [SEED]");
  g_size = strtoull(argv[1], NULL, 0) * MIB;
  take_seed(argc, argv, 3);
  char path[512];
  snprintf(path, sizeof path, "%s/transfers.%d", argv[2], getpid());
  const int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
  REQUIRE(file >= 0, "%s", path);
  unlink(path);
  unsigned char* from = malloc(g_size);
  unsigned char* to = malloc(g_size);
  REQUIRE(from != NULL && to != NULL, "malloc");
  require_managed(from);
  require_managed(to);
  fill(from, 0, g_size, 1); /* larger than DRAM: its first pages are cold by now */

  for (size_t at = 0; at < g_size;) {
    const ssize_t n = write(file, from + at, g_size - at < 5 * MIB ? g_size - at : 5 * MIB);
    REQUIRE(n > 0, "write(2) out of cold memory");
    at += (size_t)n;
  }
  printf("ok write(2) out of cold memory\n");
  REQUIRE(lseek(file, 0, SEEK_SET) == 0, "seek");
  for (size_t at = 0; at < g_size;) {
    const ssize_t n =
        read(file, to + at, g_size - at < 7 * MIB + 512 ? g_size - at : 7 * MIB + 512);
    REQUIRE(n > 0, "read(2) into fresh memory");
    at += (size_t)n;
  }
  check(to, 0, g_size, 1, "read(2) into fresh memory");
  printf("ok read(2) into fresh memory\n");
  /* Into the middle of pages that hold something, which must stay. */
  fill(to, 0, g_size, 2);
  for (size_t at = PAGE / 2; at + PAGE / 4 <= g_size; at += PAGE) {
    REQUIRE(pread(file, to + at, PAGE / 4, (off_t)at) == (ssize_t)(PAGE / 4), "pread");
  }
  for (size_t at = 0; at < g_size; at += PAGE) {
    check(to, at, at + PAGE / 2, 2, "before what pread wrote");
    check(to, at + PAGE / 2, at + 3 * PAGE / 4, 1, "what pread wrote");
    check(to, at + 3 * PAGE / 4, at + PAGE, 2, "behind what pread wrote");
  }
  printf("ok pread(2) into the middle of cold pages\n");
  struct iovec parts[64];
  for (unsigned i = 0; i < 64; ++i) {
    parts[i].iov_base = to + (g_size / 64) * i;
    parts[i].iov_len = g_size / 64;
  }
  for (off_t at = 0; at < (off_t)g_size;) {
    /* A vector may be cut short anywhere; go on with the rest of that part. */
    const size_t part = (size_t)at / (g_size / 64), inside = (size_t)at % (g_size / 64);
    struct iovec rest[64];
    memcpy(rest, parts + part, (64 - part) * sizeof *rest);
    rest[0].iov_base = (char*)rest[0].iov_base + inside;
    rest[0].iov_len -= inside;
    const ssize_t n = preadv(file, rest, (int)(64 - part), at);
    REQUIRE(n > 0, "preadv");
    at += n;
  }
  check(to, 0, g_size, 1, "preadv(2)");
  printf("ok preadv(2)\n");
  const int direct = open("/dev/zero", O_RDONLY);
  REQUIRE(read(direct, to, 4 * MIB) == (ssize_t)(4 * MIB), "read zeroes");
  check_zero(to, 0, 4 * MIB, "zeroes");
  check(to, 4 * MIB, 8 * MIB, 1, "behind the zeroes");
  close(direct);
  memset(to, 0, g_size);
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, g_socket) == 0, "socketpair");
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, drain, to) == 0, "thread");
  for (size_t at = 0; at < g_size;) {
    const ssize_t n = write(g_socket[0], from + at, g_size - at);
    REQUIRE(n > 0, "write to a socket");
    at += (size_t)n;
  }
  pthread_join(thread, NULL);
  check(to, 0, g_size, 1, "through a socket");
  printf("ok from cold memory through a socket into cold memory\n");
  free(from);
  free(to);
  close(file);
  return 0;
}

/* The kernel reads from and writes to cold memory: its faults are served like the program's.
 * usage: transfers MIB FOLDER [SEED] */
#include <fcntl.h>
#include <limits.h>
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

/* Devices write past write protection: what they bring must not get lost when its page leaves. */
static int g_direct, g_reading = 1;
static unsigned char* g_target;

static void* disturb(void* arg) {
  unsigned char* other = arg;
  unsigned round = 0;
  while (__atomic_load_n(&g_reading, __ATOMIC_RELAXED)) {
    for (size_t at = 0; at < g_size; at += PAGE) other[at] = (unsigned char)++round;
  }
  return NULL;
}

static void read_direct(unsigned how) {
  const size_t piece = 10 * MIB; /* more than one of libkvmem's buffers, and parts across them */
  for (size_t at = 0; at < g_size; at += piece) {
    const size_t size = g_size - at < piece ? g_size - at : piece;
    struct iovec parts[2] = {{g_target + at, size / 2},
                             {g_target + at + size / 2, size - size / 2}};
    ssize_t n = 0;
    switch (how) {
      case 0:
        n = pread(g_direct, g_target + at, size, (off_t)at);
        break;
      case 1:
        n = read(g_direct, g_target + at, size);
        break;
      case 2:
        n = preadv(g_direct, parts, 2, (off_t)at);
        break;
      case 3:
        n = readv(g_direct, parts, 2);
        break;
      default:
        n = preadv2(g_direct, parts, 2, -1, 0);
        break;
    }
    REQUIRE(n == (ssize_t)size, "direct read %u at %zu gave %zd of %zu", how, at, n, size);
  }
}

/* Threads that share a file position get what belongs together, however long each read is. */
static size_t g_share;

static void* read_share(void* target) {
  REQUIRE(read(g_direct, target, g_share) == (ssize_t)g_share, "a shared read");
  return NULL;
}

static void share_position(void) {
  enum { kReaders = 3 };
  pthread_t threads[kReaders];
  unsigned char seen[kReaders] = {0};
  g_share = g_size / kReaders / PAGE * PAGE;
  for (size_t i = 0; i < kReaders; ++i) {
    memset(g_target + i * g_share, 0, g_share);
  }
  for (size_t i = 0; i < kReaders; ++i) {
    REQUIRE(pthread_create(&threads[i], NULL, read_share, g_target + i * g_share) == 0, "thread");
  }
  for (size_t i = 0; i < kReaders; ++i) pthread_join(threads[i], NULL);
  REQUIRE(lseek(g_direct, 0, SEEK_CUR) == (off_t)(kReaders * g_share), "the position");
  unsigned char* want = mmap(NULL, g_size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(want != MAP_FAILED, "mmap");
  fill(want, 0, g_size, 1);
  for (size_t i = 0; i < kReaders; ++i) {
    size_t part = 0;
    while (part < kReaders && memcmp(want + part * g_share, g_target + i * g_share, g_share) != 0)
      ++part;
    REQUIRE(part < kReaders && !seen[part], "a read is torn");
    seen[part] = 1;
  }
  munmap(want, g_size);
  printf("ok direct reads that share a position\n");
}

/* What the kernel refuses is refused. */
static void refused(unsigned char* to) {
  const size_t size = 2 * PAGE;
  /* What the compiler would warn of. */
  volatile size_t endless = (size_t)-1;
  volatile int too_many = INT_MAX, too_few = -1;
  REQUIRE(read(g_direct, to, endless) == -1, "a read without bounds");
  REQUIRE(pread(g_direct, to, PAGE + 100, 0) == -1 && errno == EINVAL,
          "a length that is no sector's");
  struct iovec wraps[2] = {{to, 4096}, {to, (size_t)-4096}};
  REQUIRE(readv(g_direct, wraps, 2) == -1 && errno == EINVAL, "lengths that wrap");
  struct iovec one = {to, 4096};
  REQUIRE(readv(g_direct, &one, too_many) == -1 && errno == EINVAL, "too many parts");
  REQUIRE(readv(g_direct, &one, too_few) == -1 && errno == EINVAL, "fewer parts than none");
  REQUIRE(mprotect(to, size, PROT_READ) == 0, "mprotect");
  REQUIRE(pread(g_direct, to, size, 0) == -1 && errno == EFAULT,
          "into memory that may only be read");
  REQUIRE(mprotect(to, size, PROT_READ | PROT_WRITE) == 0, "mprotect");
  REQUIRE(pread(g_direct, to, size, 0) == (ssize_t)size, "into memory that may be written again");
  check(to, 0, size, 1, "read again");
  printf("ok direct reads that the kernel refuses\n");
}

static void direct(const char* path, unsigned char* to, unsigned char* other) {
  g_direct = open(path, O_RDONLY | O_DIRECT);
  REQUIRE(g_direct >= 0, "direct I/O on %s", path);
  g_target = to;
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, disturb, other) == 0, "thread");
  for (unsigned how = 0; how < 5; ++how) {
    memset(to, 0, g_size);
    REQUIRE(lseek(g_direct, 0, SEEK_SET) == 0, "seek");
    read_direct(how);
    check(to, 0, g_size, 1, "direct read");
  }
  REQUIRE(lseek(g_direct, 0, SEEK_SET) == 0, "seek");
  share_position();
  __atomic_store_n(&g_reading, 0, __ATOMIC_RELAXED);
  pthread_join(thread, NULL);
  REQUIRE(pread(g_direct, to, PAGE, (off_t)(g_size - 4096)) == 4096, "a short read at the end");
  REQUIRE(pread(g_direct, to, PAGE, (off_t)g_size) == 0, "a read behind the end");
  REQUIRE(pread(g_direct, to, PAGE, 1) == -1 && errno == EINVAL, "a misaligned direct read");
  refused(to);
  close(g_direct);
  printf("ok direct reads while their pages leave\n");
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 3, "usage: transfers MIB FOLDER [SEED]");
  g_size = strtoull(argv[1], NULL, 0) * MIB;
  take_seed(argc, argv, 3);
  char path[512];
  snprintf(path, sizeof path, "%s/transfers.%d", argv[2], getpid());
  const int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
  REQUIRE(file >= 0, "%s", path);
  unsigned char* from = malloc(g_size);
  unsigned char* to = aligned_alloc(PAGE, g_size); /* as direct reads want it */
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
  const int zero = open("/dev/zero", O_RDONLY);
  REQUIRE(read(zero, to, 4 * MIB) == (ssize_t)(4 * MIB), "read zeroes");
  check_zero(to, 0, 4 * MIB, "zeroes");
  check(to, 4 * MIB, 8 * MIB, 1, "behind the zeroes");
  close(zero);
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
  direct(path, to, from);
  unlink(path);
  free(from);
  free(to);
  close(file);
  return 0;
}

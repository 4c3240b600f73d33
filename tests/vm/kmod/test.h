/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For the programs that test /dev/kvmem: claims as functions, TAP as output,
 * and the calls that libc has no name for.  A program stands alone and runs as
 * root in the test machine.
 */
#ifndef KVMEM_KMOD_TEST_H
#define KVMEM_KMOD_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <kvmem_kmod.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)

static int kvmem_failed;	/* of the claim that runs */

/* Ends the claim where it does not hold. */
#define CHECK(cond)							\
	do {								\
		if (!(cond)) {						\
			printf("# %s:%d: %s (errno %d)\n", __FILE__,	\
			       __LINE__, #cond, errno);			\
			kvmem_failed = 1;				\
			return;						\
		}							\
	} while (0)

#define CHECK_EQ(a, b)							\
	do {								\
		long long a_ = (long long)(a), b_ = (long long)(b);	\
		if (a_ != b_) {						\
			printf("# %s:%d: %s is %lld, not %lld (errno %d)\n", \
			       __FILE__, __LINE__, #a, a_, b_, errno);	\
			kvmem_failed = 1;				\
			return;						\
		}							\
	} while (0)

/* The call fails with just this error. */
#define CHECK_FAILS(call, error)					\
	do {								\
		errno = 0;						\
		long r_ = (call);					\
		if (r_ != -1 || errno != (error)) {			\
			printf("# %s:%d: %s gave %ld, errno %d, not %s\n", \
			       __FILE__, __LINE__, #call, r_, errno, #error); \
			kvmem_failed = 1;				\
			return;						\
		}							\
	} while (0)

struct claim {
	const char *name;
	void (*run)(void);
};

#define CLAIM(f) { #f, f }

static inline int run_claims(const struct claim *claims, int n)
{
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%d\n", n);
	for (int i = 0; i < n; i++) {
		kvmem_failed = 0;
		claims[i].run();
		printf("%s %d - %s\n", kvmem_failed ? "not ok" : "ok", i + 1,
		       claims[i].name);
		failed += kvmem_failed;
	}
	return failed != 0;
}

#define RUN_CLAIMS(claims) run_claims(claims, sizeof(claims) / sizeof((claims)[0]))

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static inline int device_open(void)
{
	return open(KVMEM_DEVICE, O_RDONLY | O_CLOEXEC);
}

static inline int device_register(int fd, const void *p, size_t len, unsigned int shift)
{
	struct kvmem_register r = {
		.size = sizeof(r),
		.page_shift = shift,
		.start = (uintptr_t)p,
		.len = len,
	};

	return ioctl(fd, KVMEM_IOC_REGISTER, &r);
}

static inline int device_scan(int fd, const void *p, size_t len, unsigned int flags,
			      struct kvmem_scan *s)
{
	memset(s, 0, sizeof(*s));
	s->size = sizeof(*s);
	s->flags = flags;
	s->start = (uintptr_t)p;
	s->len = len;
	return ioctl(fd, KVMEM_IOC_SCAN, s);
}

static inline int device_migrate(int fd, const struct kvmem_range *ranges, unsigned int n,
				 int node, struct kvmem_migrate *m)
{
	m->size = sizeof(*m);
	m->ranges = (uintptr_t)ranges;
	m->nr_ranges = n;
	m->node = node;
	return ioctl(fd, KVMEM_IOC_MIGRATE, m);
}

static inline int device_state(int fd)
{
	struct kvmem_info info = { .size = sizeof(info) };

	return ioctl(fd, KVMEM_IOC_GET_INFO, &info) ? -1 : (int)info.state;
}

static inline const struct kvmem_heat_header *device_map(int fd, size_t *len)
{
	struct kvmem_info info = { .size = sizeof(info) };
	void *p;

	*len = 0;
	if (ioctl(fd, KVMEM_IOC_GET_INFO, &info) || !info.map_bytes)
		return NULL;
	*len = info.map_bytes;
	p = mmap(NULL, info.map_bytes, PROT_READ, MAP_SHARED, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static inline const uint8_t *heat_bytes(const struct kvmem_heat_header *header)
{
	return (const uint8_t *)header + header->header_bytes;
}

/* Memory of OS pages alone, aligned to 2 MiB, not yet touched. */
static inline char *small_pages(size_t len)
{
	char *p = mmap(NULL, len + HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		abort();
	p = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	madvise(p, len, MADV_NOHUGEPAGE);
	return p;
}

static inline void touch_write(char *p, size_t pages, uint64_t salt)
{
	for (size_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(p + i * PAGE) = i + salt;
}

static inline void touch_read(const char *p, size_t page)
{
	(void)*(const volatile char *)(p + page * PAGE);
}

static inline long bind_to(void *p, size_t len, int mode, unsigned long nodes)
{
	return syscall(SYS_mbind, p, len, mode, &nodes, 8 * sizeof(nodes), 0);
}

/* How many of the pages are on the node. */
static inline long pages_on(char *p, size_t pages, int node)
{
	void **at = calloc(pages, sizeof(*at));
	int *status = calloc(pages, sizeof(*status));
	long count = 0;

	for (size_t i = 0; i < pages; i++)
		at[i] = p + i * PAGE;
	if (syscall(SYS_move_pages, 0, pages, at, NULL, status, 0))
		count = -1;
	for (size_t i = 0; i < pages && count >= 0; i++)
		count += status[i] == node;
	free(at);
	free(status);
	return count;
}

static inline int send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = {}, byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(socket, &m, 0) == 1 ? 0 : -1;
}

static inline int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(socket, &m, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&m))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

#endif /* KVMEM_KMOD_TEST_H */

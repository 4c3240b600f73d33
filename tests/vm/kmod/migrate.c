// SPDX-License-Identifier: GPL-2.0
/* MIGRATE: pages go where they are told, with the bytes they have, or stay. */
#define _GNU_SOURCE
#include "test.h"
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <linux/capability.h>

static uint64_t sum(const struct kvmem_migrate *m)
{
	return m->moved + m->resident + m->absent + m->huge + m->shared + m->policy +
	       m->pinned + m->busy + m->unsupported;
}

static int move_all(int fd, void *p, size_t len, int node, struct kvmem_migrate *m)
{
	struct kvmem_range range = { (uintptr_t)p, len };

	memset(m, 0, sizeof(*m));
	return device_migrate(fd, &range, 1, node, m);
}

/* Pages on node 0, each with its number in it, registered. */
static int on_node_0(char *p, size_t n)
{
	int fd = device_open();

	if (fd < 0 || bind_to(p, n * PAGE, MPOL_BIND, 1))
		return -1;
	touch_write(p, n, 1);
	if (bind_to(p, n * PAGE, MPOL_DEFAULT, 0) || pages_on(p, n, 0) != (long)n ||
	    device_register(fd, p, n * PAGE, 12))
		return -1;
	return fd;
}

static bool intact(const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (*(const uint64_t *)(p + i * PAGE) != i + 1)
			return false;
	return true;
}

static char *memfd_pages(size_t len, int *memfd)
{
	char *p;

	*memfd = memfd_create("region", MFD_CLOEXEC);
	if (*memfd < 0 || ftruncate(*memfd, len))
		abort();
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, *memfd, 0);
	if (p == MAP_FAILED)
		abort();
	return p;
}

/* What move_pages(2) takes for the same, from node 1 to 0 and back: us/page. */
static double peer_us(char *p, size_t n)
{
	void **at = calloc(n, sizeof(*at));
	int *node = calloc(n, sizeof(*node)), *status = calloc(n, sizeof(*status));
	uint64_t began = now_ns();

	for (size_t i = 0; i < n; i++)
		at[i] = p + i * PAGE;
	syscall(SYS_move_pages, 0, n, at, node, status, MPOL_MF_MOVE);
	for (size_t i = 0; i < n; i++)
		node[i] = 1;
	syscall(SYS_move_pages, 0, n, at, node, status, MPOL_MF_MOVE);
	free(at);
	free(node);
	free(status);
	return (now_ns() - began) / 2e3 / n;
}

static void there_and_back(char *p, size_t n)
{
	int fd = on_node_0(p, n);
	struct kvmem_migrate m;

	CHECK(fd >= 0);
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
		CHECK_EQ(m.moved, n);
		CHECK_EQ(sum(&m), n);
		CHECK_EQ(m.stop, KVMEM_STOP_NONE);
		CHECK_EQ(pages_on(p, n, 1), n);
		printf("# %.1f us/page, move_pages %.1f\n", m.ns / 1e3 / n, peer_us(p, n));
		CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
		CHECK_EQ(m.resident, n);
		CHECK_EQ(sum(&m), n);
		CHECK_EQ(move_all(fd, p, n * PAGE, 0, &m), 0);
		CHECK_EQ(m.moved, n);
		CHECK_EQ(pages_on(p, n, 0), n);
	}
	CHECK(intact(p, n));
	close(fd);
}

static void AnonymousPagesMoveThereAndBack(void)
{
	size_t n = 4096;
	char *p = small_pages(n * PAGE);

	there_and_back(p, n);
	munmap(p, n * PAGE);
}

static void PagesOfAMemfdStay(void)
{
	size_t n = 1024;
	int memfd, fd;
	char *p = memfd_pages(n * PAGE, &memfd), *private;
	struct kvmem_migrate m;

	fd = on_node_0(p, n);
	CHECK(fd >= 0);
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.unsupported, n);
	CHECK_EQ(sum(&m), n);
	CHECK_EQ(pages_on(p, n, 0), n);
	close(fd);
	/* Of a private mapping, the pages that were written are its own. */
	private = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
	bind_to(private, n * PAGE, MPOL_BIND, 1);
	for (size_t i = 0; i < n; i++) {
		touch_read(private, i);
		if (i % 2)
			((uint64_t *)(private + i * PAGE))[1] = i;
	}
	bind_to(private, n * PAGE, MPOL_DEFAULT, 0);
	fd = device_open();
	CHECK_EQ(device_register(fd, private, n * PAGE, 12), 0);
	CHECK_EQ(move_all(fd, private, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.moved, n / 2);
	CHECK_EQ(m.unsupported, n / 2);
	CHECK(intact(private, n));
	CHECK(intact(p, n));
	for (size_t i = 1; i < n; i += 2)
		CHECK_EQ(((uint64_t *)(private + i * PAGE))[1], i);
	close(fd);
	munmap(private, n * PAGE);
	munmap(p, n * PAGE);
	close(memfd);
}

static volatile int stop;

struct writer {
	char *p;
	size_t n;
	unsigned int seed;
	uint64_t *wrote;	/* per page, by this writer alone */
	int slot;
	int errors;
};

/* Counts up in its slot of random pages, and looks whether the count is its own. */
static void *write_randomly(void *arg)
{
	struct writer *w = arg;

	while (!stop) {
		size_t i = rand_r(&w->seed) % w->n;
		volatile uint64_t *at = (uint64_t *)(w->p + i * PAGE) + w->slot;
		uint64_t next = w->wrote[i] + 1;

		if (*at != w->wrote[i])
			w->errors++;
		*at = next;
		w->wrote[i] = next;
	}
	return NULL;
}

static void NoWriteIsLost(void)
{
	size_t n = 1024;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n);
	struct writer w[2];
	pthread_t thread[2];
	struct kvmem_migrate m;
	struct kvmem_scan s;
	uint64_t moved = 0, busy = 0, writes = 0;
	int bad = 0;

	CHECK(fd >= 0);
	stop = 0;
	for (int k = 0; k < 2; k++) {
		w[k] = (struct writer){ p, n, k + 1, calloc(n, 8), 1 + k, 0 };
		CHECK(!pthread_create(&thread[k], NULL, write_randomly, &w[k]));
	}
	for (int round = 0; round < 10 && !bad; round++) {
		bad = move_all(fd, p, n * PAGE, 1 - round % 2, &m) || sum(&m) != n ||
		      device_scan(fd, p, n * PAGE, KVMEM_SCAN_FLUSH, &s);
		moved += m.moved;
		busy += m.busy;
	}
	stop = 1;
	for (int k = 0; k < 2; k++)
		pthread_join(thread[k], NULL);
	CHECK(!bad);
	for (int k = 0; k < 2; k++) {
		CHECK_EQ(w[k].errors, 0);
		for (size_t i = 0; i < n; i++) {
			writes += w[k].wrote[i];
			CHECK_EQ(((uint64_t *)(p + i * PAGE))[1 + k], w[k].wrote[i]);
		}
		free(w[k].wrote);
	}
	CHECK(intact(p, n));
	CHECK(moved > 9 * n);
	printf("# %lu moved, %lu busy, %lu writes\n", moved, busy, writes);
	munmap(p, n * PAGE);
	close(fd);
}

static void AbsentAndResidentPagesAreLeftAlone(void)
{
	size_t n = 1536;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	struct kvmem_migrate m;

	CHECK(fd >= 0);
	/* Of each four: node 0, node 1, never touched, zero page. */
	for (size_t i = 0; i < n; i++) {
		if (i % 4 < 2)
			bind_to(p + i * PAGE, PAGE, MPOL_BIND, i % 4 ? 2 : 1);
		if (i % 4 < 2)
			*(uint64_t *)(p + i * PAGE) = i + 1;
		if (i % 4 == 3)
			touch_read(p, i);
	}
	bind_to(p, n * PAGE, MPOL_DEFAULT, 0);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.moved, n / 4);
	CHECK_EQ(m.resident, n / 4);
	CHECK_EQ(m.absent, n / 2);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(*(uint64_t *)(p + i * PAGE), i % 4 < 2 ? i + 1 : 0);
	munmap(p + 512 * PAGE, 512 * PAGE);
	CHECK_EQ(move_all(fd, p, n * PAGE, 0, &m), 0);
	CHECK_EQ(m.moved, n / 3);
	CHECK_EQ(m.absent, n - n / 3);
	CHECK_EQ(sum(&m), n);
	munmap(p, n * PAGE);
	close(fd);
}

static void HugePagesStayWhole(void)
{
	size_t n = 2048;
	char *p = small_pages(n * PAGE), *q;
	int fd = device_open();
	struct kvmem_migrate m;
	struct kvmem_scan s;

	madvise(p, n * PAGE, MADV_HUGEPAGE);
	bind_to(p, n * PAGE, MPOL_BIND, 1);
	touch_write(p, n, 1);
	bind_to(p, n * PAGE, MPOL_DEFAULT, 0);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, n * PAGE, 0, &s), 0);
	CHECK_EQ(s.huge, n);
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.huge, n);
	CHECK_EQ(sum(&m), n);
	CHECK_EQ(device_scan(fd, p, n * PAGE, 0, &s), 0);
	CHECK_EQ(s.huge, n);
	/* One whose entries were split: its pages are a huge page all the same. */
	q = p + HUGE;
	CHECK(!mprotect(q, PAGE, PROT_READ));
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.huge, n);
	CHECK_EQ(pages_on(p, n, 0), n);
	CHECK(intact(p, n));
	munmap(p, n * PAGE);
	close(fd);
}

static void AVmasPolicyIsHonoured(void)
{
	size_t n = 512;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n);
	struct kvmem_migrate m;

	CHECK(fd >= 0);
	bind_to(p, 128 * PAGE, MPOL_BIND, 1);
	bind_to(p + 128 * PAGE, 128 * PAGE, MPOL_PREFERRED, 1);
	bind_to(p + 256 * PAGE, 128 * PAGE, MPOL_INTERLEAVE, 3);
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.policy, 128);
	CHECK_EQ(m.moved, n - 128);
	CHECK_EQ(pages_on(p, 128, 0), 128);
	CHECK(intact(p, n));
	munmap(p, n * PAGE);
	close(fd);
}

/* As io_uring pins its fixed buffers. */
static void PinnedPagesAreNotDisturbed(void)
{
	size_t n = 1024;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n), ring;
	struct io_uring_params params = {};
	struct iovec iov = { p + 256 * PAGE, 512 * PAGE };
	struct kvmem_migrate m;

	CHECK(fd >= 0);
	ring = syscall(SYS_io_uring_setup, 4, &params);
	CHECK(ring >= 0);
	CHECK_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1), 0);
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.pinned, 512);
	CHECK_EQ(m.moved, 512);
	CHECK_EQ(sum(&m), n);
	CHECK_EQ(pages_on(p + 256 * PAGE, 512, 0), 512);
	close(ring);
	for (int i = 0; i < 500 && m.pinned; i++) {
		usleep(10000);	/* a ring is torn down by a worker */
		CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	}
	CHECK_EQ(pages_on(p, n, 1), n);
	CHECK(intact(p, n));
	munmap(p, n * PAGE);
	close(fd);
}

static void MaxPagesStopsAndIsTakenUpAgain(void)
{
	size_t n = 2048;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n);
	struct kvmem_range range = { (uintptr_t)p, n * PAGE };
	uint64_t moved = 0;
	int calls = 0;

	CHECK(fd >= 0);
	for (;;) {
		struct kvmem_migrate m = { .max_pages = 300 };

		CHECK_EQ(device_migrate(fd, &range, 1, 1, &m), 0);
		moved += m.moved;
		calls++;
		CHECK(m.moved <= 300);
		if (m.stop == KVMEM_STOP_NONE)
			break;
		CHECK_EQ(m.stop, KVMEM_STOP_MAX_PAGES);
		CHECK_EQ(m.moved, 300);
		CHECK_EQ(sum(&m) * PAGE, m.next - range.start);
		CHECK_EQ(pages_on(p, n, 1), moved);
		range.len -= m.next - range.start;
		range.start = m.next;
	}
	CHECK_EQ(moved, n);
	CHECK_EQ(calls, 7);
	CHECK(intact(p, n));
	munmap(p, n * PAGE);
	close(fd);
}

static void ADeadlineStopsAfterAStep(void)
{
	size_t n = 2048;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n);
	struct kvmem_range range[2] = {
		{ (uintptr_t)p, 512 * PAGE }, { (uintptr_t)p + 512 * PAGE, 1536 * PAGE },
	};
	struct kvmem_migrate m = { .deadline_ns = 1 };

	CHECK(fd >= 0);
	CHECK_EQ(device_migrate(fd, range, 2, 1, &m), 0);
	CHECK_EQ(m.stop, KVMEM_STOP_DEADLINE);
	CHECK_EQ(m.moved, 512);
	CHECK_EQ(m.next_range, 0);
	CHECK_EQ(m.next, (uintptr_t)p + 512 * PAGE);
	m.deadline_ns = now_ns() + 600000000000ull;
	CHECK_EQ(device_migrate(fd, range, 2, 1, &m), 0);
	CHECK_EQ(m.stop, KVMEM_STOP_NONE);
	CHECK_EQ(m.moved, 1536);
	CHECK_EQ(m.resident, 512);
	munmap(p, n * PAGE);
	close(fd);
}

static void ScatteredRangesMoveAndNothingBetweenThem(void)
{
	size_t n = 4096;
	unsigned int k = KVMEM_RANGES_MAX;
	char *p = small_pages(n * PAGE);
	int fd = on_node_0(p, n);
	struct kvmem_range *ranges = calloc(k, sizeof(*ranges));
	struct kvmem_migrate m = {};

	CHECK(fd >= 0);
	for (unsigned int i = 0; i < k; i++) {
		ranges[i].start = (uintptr_t)p + 4 * i * PAGE;
		ranges[i].len = PAGE;
	}
	CHECK_EQ(device_migrate(fd, ranges, k, 1, &m), 0);
	CHECK_EQ(m.moved, k);
	CHECK_EQ(sum(&m), k);
	CHECK_EQ(pages_on(p, n, 1), k);
	printf("# single pages: %.1f us each\n", m.ns / 1e3 / k);
	for (size_t i = 0; i < n; i += 257)
		CHECK_EQ(pages_on(p + i * PAGE, 1, 1), i % 4 == 0);
	CHECK(intact(p, n));
	free(ranges);
	munmap(p, n * PAGE);
	close(fd);
}

/* Node 1 has 1 GiB, less than is asked of it. */
static void AFullNodeStopsAndThePageStays(void)
{
	size_t n = 1200ul << 8, chunk = 4096;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	struct kvmem_migrate m;
	uint64_t moved = 0;
	size_t at;

	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	for (at = 0; at < n; at += chunk) {
		touch_write(p + at * PAGE, chunk, at + 1);
		CHECK_EQ(move_all(fd, p + at * PAGE, chunk * PAGE, 1, &m), 0);
		moved += m.moved + m.resident;
		if (m.stop)
			break;
	}
	CHECK(at < n);
	CHECK_EQ(m.stop, KVMEM_STOP_NOMEM);
	CHECK_EQ(sum(&m) * PAGE, m.next - (uintptr_t)p - at * PAGE);
	CHECK_EQ(pages_on((char *)(uintptr_t)m.next, 1, 0), 1);
	CHECK(intact(p, at + chunk));
	printf("# %lu MiB until node 1 was full\n", moved >> 8);
	munmap(p, n * PAGE);
	close(fd);
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = {};

	return syscall(SYS_capset, &header, data);
}

static void WithoutPrivilegeOneMovesOnlyWhatIsOnesOwn(void)
{
	size_t n = 512;
	int fd, status;
	char *own = small_pages(n * PAGE);
	struct kvmem_migrate m;
	pid_t child;

	/* Another process's memory: not at all. */
	fd = on_node_0(own, n);
	CHECK(fd >= 0);
	child = fork();
	if (!child) {
		if (move_all(fd, own, n * PAGE, 1, &m))
			_exit(1);	/* root may */
		if (m.moved + m.resident != n)
			_exit(2);
		if (drop_capabilities())
			_exit(3);
		_exit(move_all(fd, own, n * PAGE, 0, &m) == -1 && errno == EPERM ? 0 : 4);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
	CHECK_EQ(pages_on(own, n, 1), n);
	CHECK(intact(own, n));
	close(fd);

	/* Own memory that another maps too, here since fork: only with privilege. */
	child = fork();
	if (!child) {
		int own_fd = device_open();

		for (size_t i = 0; i < n / 4; i++)
			((uint64_t *)(own + i * PAGE))[1] = i;
		if (device_register(own_fd, own, n * PAGE, 12) ||
		    move_all(own_fd, own, n * PAGE, 1, &m) || m.moved + m.resident != n)
			_exit(1);
		if (drop_capabilities() || move_all(own_fd, own, n * PAGE, 0, &m))
			_exit(2);
		_exit(m.moved == n / 4 && m.shared == n - n / 4 && intact(own, n) ? 0 : 3);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
	CHECK(intact(own, n));
	munmap(own, n * PAGE);
}

static void *write_once(void *arg)
{
	((volatile uint64_t *)arg)[1] = 1;
	return NULL;
}

/* Write protection by userfaultfd, as demotion sets it, moves with the page. */
static void WriteProtectionMovesWithThePage(void)
{
	size_t n = 512;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct kvmem_migrate m;
	int uffd, fd;
	char *p = small_pages(n * PAGE);

	fd = on_node_0(p, n);
	CHECK(fd >= 0);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)p;
	reg.range.len = n * PAGE;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &reg));
	wp.range = reg.range;
	CHECK(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
	CHECK_EQ(move_all(fd, p, n * PAGE, 1, &m), 0);
	CHECK_EQ(m.moved, n);
	for (size_t i = 0; i < n; i += 50) {
		struct uffd_msg msg;
		struct pollfd poll_uffd = { uffd, POLLIN, 0 };
		pthread_t thread;

		CHECK(!pthread_create(&thread, NULL, write_once, p + i * PAGE));
		CHECK_EQ(poll(&poll_uffd, 1, 10000), 1);
		CHECK(read(uffd, &msg, sizeof(msg)) == sizeof(msg));
		CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
		CHECK_EQ(msg.arg.pagefault.address & ~(PAGE - 1), (uintptr_t)p + i * PAGE);
		wp.range.start = (uintptr_t)p + i * PAGE;
		wp.range.len = PAGE;
		wp.mode = 0;
		CHECK(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
		pthread_join(thread, NULL);
	}
	CHECK(intact(p, n));
	close(uffd);
	close(fd);
	munmap(p, n * PAGE);
}

static char *churn_base;

static void *churn(void *arg)
{
	unsigned int seed = 3;
	size_t n = *(size_t *)arg;

	while (!stop) {
		char *p = churn_base + rand_r(&seed) % (n / 64) * 64 * PAGE;

		switch (rand_r(&seed) % 4) {
		case 0:
			madvise(p, 64 * PAGE, MADV_DONTNEED);
			break;
		case 1:
			mmap(p, 64 * PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			madvise(p, 64 * PAGE, MADV_NOHUGEPAGE);
			break;
		case 2:
			madvise(p, 64 * PAGE, 21 /* MADV_PAGEOUT */);
			break;
		}
		memset(p, seed, 64 * PAGE);
		for (size_t i = 0; i < 64 * PAGE; i += 64)
			if (p[i] != (char)seed)
				abort();
	}
	return NULL;
}

static void CountsAddUpWhileTheRangeIsRemapped(void)
{
	size_t n = 2048;
	int fd = device_open(), bad = 0;
	uint64_t moved = 0, end = now_ns() + 4000000000ull;
	struct kvmem_migrate m;
	pthread_t thread;

	churn_base = small_pages(n * PAGE);
	CHECK_EQ(device_register(fd, churn_base, n * PAGE, 12), 0);
	stop = 0;
	CHECK(!pthread_create(&thread, NULL, churn, &n));
	for (int round = 0; now_ns() < end && !bad; round++) {
		bad = move_all(fd, churn_base, n * PAGE, round % 2, &m) || sum(&m) != n;
		moved += m.moved;
	}
	stop = 1;
	pthread_join(thread, NULL);
	CHECK(!bad);
	CHECK(moved > 0);
	printf("# %lu moved\n", moved);
	munmap(churn_base, n * PAGE);
	close(fd);
}

int main(void)
{
	static const struct claim claims[] = {
		CLAIM(AnonymousPagesMoveThereAndBack),
		CLAIM(PagesOfAMemfdStay),
		CLAIM(NoWriteIsLost),
		CLAIM(AbsentAndResidentPagesAreLeftAlone),
		CLAIM(HugePagesStayWhole),
		CLAIM(AVmasPolicyIsHonoured),
		CLAIM(PinnedPagesAreNotDisturbed),
		CLAIM(MaxPagesStopsAndIsTakenUpAgain),
		CLAIM(ADeadlineStopsAfterAStep),
		CLAIM(ScatteredRangesMoveAndNothingBetweenThem),
		CLAIM(WithoutPrivilegeOneMovesOnlyWhatIsOnesOwn),
		CLAIM(WriteProtectionMovesWithThePage),
		CLAIM(CountsAddUpWhileTheRangeIsRemapped),
		CLAIM(AFullNodeStopsAndThePageStays),
	};

	return RUN_CLAIMS(claims);
}

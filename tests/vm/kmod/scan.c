// SPDX-License-Identifier: GPL-2.0
/* SCAN: what was touched is found, whatever the memory is made of and whoever asks. */
#define _GNU_SOURCE
#include "test.h"
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#define DECAY KVMEM_SCAN_DECAY
#define FLUSH KVMEM_SCAN_FLUSH

static bool adds_up(const struct kvmem_scan *s)
{
	return s->young + s->old + s->absent + s->unsupported == s->len / PAGE &&
	       s->huge <= s->young + s->old;
}

/* Touches every 97th page from the 5th and compares heat and counts. */
static void finds_exactly(char *p, size_t n)
{
	int fd = device_open();
	size_t touched = 0, wrong = 0, map_len;
	const struct kvmem_heat_header *header;
	struct kvmem_scan s;

	CHECK(fd >= 0);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	header = device_map(fd, &map_len);
	CHECK(header);
	for (int round = 0; round < 9; round++)
		CHECK_EQ(device_scan(fd, p, n * PAGE, DECAY | FLUSH, &s), 0);
	CHECK(adds_up(&s));
	CHECK_EQ(s.young, 0);
	CHECK_EQ(s.old, n);
	for (size_t i = 5; i < n; i += 97, touched++)
		touch_read(p, i);
	CHECK_EQ(device_scan(fd, p, n * PAGE, DECAY | FLUSH, &s), 0);
	CHECK(adds_up(&s));
	CHECK_EQ(s.young, touched);
	for (size_t i = 0; i < n; i++)
		wrong += (heat_bytes(header)[i] >= KVMEM_HEAT_STEP) != (i % 97 == 5);
	CHECK_EQ(wrong, 0);
	printf("# %zu pages in %.1f ns/page\n", n, (double)s.ns / n);
	munmap((void *)header, map_len);
	close(fd);
}

static void FindsExactlyWhatWasReadInAnonymousMemory(void)
{
	size_t n = 8192;
	char *p = small_pages(n * PAGE);

	touch_write(p, n, 1);
	finds_exactly(p, n);
	munmap(p, n * PAGE);
}

static void FindsExactlyWhatWasReadInAMemfd(void)
{
	size_t n = 4096;
	int memfd = memfd_create("region", MFD_CLOEXEC);
	char *p;

	CHECK(!ftruncate(memfd, n * PAGE));
	p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CHECK(p != MAP_FAILED);
	touch_write(p, n, 1);
	finds_exactly(p, n);
	munmap(p, n * PAGE);
	close(memfd);
}

static void SparseMemoryIsAbsentWhereNothingIs(void)
{
	size_t n = 16384, touched = 0, map_len;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	const struct kvmem_heat_header *header;
	struct kvmem_scan s;

	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	header = device_map(fd, &map_len);
	for (size_t i = 5; i < n; i += 997, touched++)
		p[i * PAGE] = 1;
	CHECK_EQ(device_scan(fd, p, n * PAGE, 0, &s), 0);
	CHECK_EQ(s.young, touched);
	CHECK_EQ(s.absent, n - touched);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(heat_bytes(header)[i], i % 997 == 5 ? KVMEM_HEAT_STEP : 0);
	munmap((void *)header, map_len);
	munmap(p, n * PAGE);
	close(fd);
}

static void WithFlushTheHottestPagesAreSeenEveryTime(void)
{
	size_t n = 2048;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	struct kvmem_scan s;

	touch_write(p, n, 1);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	for (int round = 0; round < 50; round++) {
		for (int again = 0; again < 100; again++)
			for (int i = 0; i < 8; i++)
				touch_read(p, i * 3);
		CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
		CHECK_EQ(s.young, 8);
		CHECK_EQ(s.old, n - 8);
	}
	munmap(p, n * PAGE);
	close(fd);
}

/* An earlier scan left cached translations; one with a flush sees to them. */
static void FlushRepairsAScanWithout(void)
{
	size_t n = 16;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	struct kvmem_scan s;

	touch_write(p, n, 1);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, n * PAGE, 0, &s), 0);
	CHECK_EQ(s.young, n);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	for (size_t i = 0; i < n; i++)
		touch_read(p, i);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	CHECK_EQ(s.young, n);
	munmap(p, n * PAGE);
	close(fd);
}

static volatile int stop;
static volatile unsigned long rounds;

static void *reader(void *arg)
{
	char *p = arg;

	while (!stop) {
		for (int i = 0; i < 8; i++)
			touch_read(p, i);
		rounds++;
	}
	return NULL;
}

/* The reader runs on another CPU, its translations are cached there. */
static void FlushReachesOtherCpus(void)
{
	size_t n = 512;
	char *p = small_pages(n * PAGE);
	int fd = device_open();
	struct kvmem_scan s;
	pthread_t thread;

	touch_write(p, n, 1);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	stop = 0;
	CHECK(!pthread_create(&thread, NULL, reader, p));
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	for (int i = 0; i < 100; i++) {
		unsigned long seen = rounds;

		while (rounds < seen + 2)
			usleep(100);
		s.young = 0;
		if (device_scan(fd, p, n * PAGE, FLUSH, &s) || s.young != 8)
			break;
	}
	stop = 1;
	pthread_join(thread, NULL);
	CHECK_EQ(s.young, 8);
	munmap(p, n * PAGE);
	close(fd);
}

static void HeatSaturatesAndDecaysByHalves(void)
{
	static const int risen[] = { 128, 192, 224, 240, 248, 252, 254, 255, 255 };
	char *p = small_pages(PAGE * 512);
	int fd = device_open();
	const struct kvmem_heat_header *header;
	struct kvmem_scan s;
	size_t map_len;
	int heat;

	p[0] = 1;
	CHECK_EQ(device_register(fd, p, PAGE * 512, 12), 0);
	header = device_map(fd, &map_len);
	for (size_t i = 0; i < sizeof(risen) / sizeof(risen[0]); i++) {
		touch_read(p, 0);
		CHECK_EQ(device_scan(fd, p, PAGE * 512, DECAY | FLUSH, &s), 0);
		CHECK_EQ(s.young, 1);
		CHECK_EQ(heat_bytes(header)[0], risen[i]);
	}
	CHECK_EQ(device_scan(fd, p, PAGE * 512, FLUSH, &s), 0);
	CHECK_EQ(heat_bytes(header)[0], 255);
	for (heat = 255; heat; heat /= 2) {
		CHECK_EQ(heat_bytes(header)[0], heat);
		CHECK_EQ(device_scan(fd, p, PAGE * 512, DECAY, &s), 0);
	}
	CHECK_EQ(heat_bytes(header)[0], 0);
	CHECK_EQ(header->scans, s.scans);
	CHECK_EQ(header->seq, 2 * s.scans);
	munmap((void *)header, map_len);
	close(fd);
}

/* One byte per 64 KiB, 2 MiB, 4 MiB: any OS page of it touched, once a scan. */
static void LargeHeatPagesRiseOnceAScan(void)
{
	static const unsigned int shifts[] = { 16, 21, 22 };

	for (int k = 0; k < 3; k++) {
		size_t unit = 1ul << shifts[k], len = 16ul << 20, map_len;
		char *base = small_pages(len + unit);
		char *p = (char *)(((uintptr_t)base + unit - 1) & ~(unit - 1));
		int fd = device_open();
		const struct kvmem_heat_header *header;
		struct kvmem_scan s;

		touch_write(p, len / PAGE, 1);
		CHECK_EQ(device_register(fd, p, len, shifts[k]), 0);
		CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
		CHECK_EQ(s.young, len / PAGE);
		header = device_map(fd, &map_len);
		CHECK_EQ(header->count, len / unit);
		for (size_t i = 0; i < header->count; i++)
			CHECK_EQ(heat_bytes(header)[i], 128);
		touch_read(p, unit / PAGE - 1);
		touch_read(p, unit / PAGE * 3);
		CHECK_EQ(device_scan(fd, p, len, DECAY | FLUSH, &s), 0);
		CHECK_EQ(s.young, 2);
		for (size_t i = 0; i < header->count; i++)
			CHECK_EQ(heat_bytes(header)[i], i == 0 || i == 3 ? 192 : 64);
		/* A part: the rest keeps its heat. */
		CHECK_EQ(device_scan(fd, p + unit, unit, DECAY, &s), 0);
		CHECK_EQ(heat_bytes(header)[0], 192);
		CHECK_EQ(heat_bytes(header)[1], 32);
		munmap((void *)header, map_len);
		munmap(base, len + unit);
		close(fd);
	}
}

static void ThpIsScannedAsAWhole(void)
{
	size_t len = 8 * HUGE;
	char *p = small_pages(len);
	int fd = device_open();
	struct kvmem_scan s;
	size_t huge;

	madvise(p, len, MADV_HUGEPAGE);
	for (size_t i = 0; i < 8; i++)
		p[i * HUGE] = 1;
	CHECK_EQ(device_register(fd, p, len, 12), 0);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK(adds_up(&s));
	huge = s.huge;
	CHECK_EQ(huge, len / PAGE);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK_EQ(s.young, 0);
	touch_read(p, 3 * 512 + 17);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK_EQ(s.young, 512);
	CHECK_EQ(s.old, len / PAGE - 512);
	printf("# huge: %.2f ns/page\n", (double)s.ns / (len / PAGE));
	munmap(p, len);
	close(fd);
}

static int pool_of_huge_pages(int n)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "w");
	int ok = f && fprintf(f, "%d\n", n) > 0;

	if (f)
		ok &= !fclose(f);
	return ok ? 0 : -1;
}

static void HugetlbIsScannedWherePageTablesAreNotShared(void)
{
	size_t len = 4 * HUGE;
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_HUGETLBFS };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MINOR };
	int memfd, uffd, fd;
	struct kvmem_scan s;
	char *p;

	CHECK(!pool_of_huge_pages(16));
	/* Private: always. */
	p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	CHECK(p != MAP_FAILED);
	fd = device_open();
	CHECK_EQ(device_register(fd, p, len, 21), 0);
	p[0] = p[HUGE] = 1;
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK(adds_up(&s));
	CHECK_EQ(s.young, 1024);
	CHECK_EQ(s.huge, 1024);
	CHECK_EQ(s.absent, 1024);
	touch_read(p, 512);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK_EQ(s.young, 512);
	CHECK_EQ(s.old, 512);
	munmap(p, len);
	close(fd);

	/* Shared: once userfaultfd wants entries of this process alone. */
	memfd = memfd_create("region", MFD_CLOEXEC | MFD_HUGETLB);
	CHECK(memfd >= 0 && !ftruncate(memfd, len));
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CHECK(p != MAP_FAILED);
	p[0] = 1;
	fd = device_open();
	CHECK_EQ(device_register(fd, p, len, 21), 0);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK(adds_up(&s));
	CHECK_EQ(s.unsupported, 2048);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)p;
	reg.range.len = len;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &reg));
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK_EQ(s.unsupported, 0);
	CHECK_EQ(s.young + s.old, 512);
	touch_read(p, 0);
	CHECK_EQ(device_scan(fd, p, len, FLUSH, &s), 0);
	CHECK_EQ(s.young, 512);
	close(uffd);
	munmap(p, len);
	close(memfd);
	close(fd);
	CHECK(!pool_of_huge_pages(0));
}

static void FilesAreNotLookedAt(void)
{
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), fd = device_open();
	char *p = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
	struct kvmem_scan s;

	CHECK(p != MAP_FAILED);
	touch_read(p, 0);
	CHECK_EQ(device_register(fd, p, 4 * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, 4 * PAGE, FLUSH, &s), 0);
	CHECK_EQ(s.unsupported, 4);
	munmap(p, 4 * PAGE);
	CHECK_EQ(device_scan(fd, p, 4 * PAGE, FLUSH, &s), 0);
	CHECK_EQ(s.absent, 4);
	close(file);
	close(fd);
}

/* A descriptor that another process sent: its range can be scanned, till it dies. */
static void AnotherProcessScansByDescriptorUntilTheOwnerExits(void)
{
	size_t n = 1024, map_len;
	const struct kvmem_heat_header *header;
	struct kvmem_scan s;
	struct kvmem_range range;
	struct kvmem_migrate m = {};
	int pair[2], fd, event, status;
	struct kvmem_eventfd e = { .size = sizeof(e) };
	uint64_t count;
	pid_t owner;
	char *p = small_pages(n * PAGE);	/* the same address in both */

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	owner = fork();
	if (!owner) {
		char byte;

		fd = device_open();
		touch_write(p, n, 1);
		if (device_register(fd, p, n * PAGE, 12) || send_fd(pair[1], fd))
			_exit(1);
		close(fd);
		/* Touches three pages each time it is asked. */
		while (read(pair[1], &byte, 1) == 1 && byte) {
			for (int i = 1; i <= 3; i++)
				touch_read(p, i * 100);
			if (write(pair[1], &byte, 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	fd = receive_fd(pair[0]);
	CHECK(fd >= 0);
	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e.fd = event;
	CHECK_EQ(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), 0);
	header = device_map(fd, &map_len);
	CHECK(header);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	CHECK_EQ(s.young, n);
	for (int round = 0; round < 5; round++) {
		char byte = 1;

		CHECK(write(pair[0], &byte, 1) == 1 && read(pair[0], &byte, 1) == 1);
		CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
		CHECK_EQ(s.young, 3);
	}
	CHECK(read(event, &count, 8) == 8);
	CHECK_EQ(count, 6);
	CHECK_EQ(device_state(fd), KVMEM_STATE_LIVE);
	/* Nobody can put his own memory in the owner's place. */
	CHECK_FAILS(device_register(fd, p, n * PAGE, 12), EBUSY);

	close(pair[1]);
	CHECK(write(pair[0], "", 1) == 1);
	CHECK(waitpid(owner, &status, 0) == owner);
	CHECK_EQ(status, 0);
	CHECK_FAILS(device_scan(fd, p, n * PAGE, 0, &s), ESRCH);
	range.start = (uintptr_t)p;
	range.len = n * PAGE;
	CHECK_FAILS(device_migrate(fd, &range, 1, 1, &m), ESRCH);
	CHECK_EQ(device_state(fd), KVMEM_STATE_GONE);
	CHECK_EQ(header->state, KVMEM_STATE_GONE);
	CHECK_EQ(heat_bytes(header)[100], 255);
	CHECK(read(event, &count, 8) == 8);
	CHECK_EQ(count, 1);
	/* The descriptor is as new after UNREGISTER; the old mapping stays. */
	CHECK_EQ(ioctl(fd, KVMEM_IOC_UNREGISTER, 0), 0);
	CHECK_EQ(device_state(fd), KVMEM_STATE_OPEN);
	CHECK_EQ(header->state, KVMEM_STATE_OPEN);
	CHECK_FAILS(device_scan(fd, p, n * PAGE, 0, &s), ENXIO);
	touch_write(p, n, 1);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, n * PAGE, 0, &s), 0);
	CHECK_EQ(s.young, n);
	CHECK_EQ(heat_bytes(header)[0], 128);
	munmap((void *)header, map_len);
	munmap(p, n * PAGE);
	close(pair[0]);
	close(event);
	close(fd);
}

static void ExecIsTheOwnersEnd(void)
{
	char *p = small_pages(PAGE * 512);
	int fd = device_open(), go[2], status;
	struct kvmem_scan s;
	pid_t owner;

	CHECK(!pipe(go));
	owner = fork();
	if (!owner) {
		char *argv[] = { (char *)"sleep", (char *)"100", NULL };

		status = device_register(fd, p, PAGE * 512, 12);
		if (write(go[1], &status, 1) != 1)
			_exit(1);
		execv("/bin/sleep", argv);
		_exit(1);
	}
	CHECK(read(go[0], &status, 1) == 1);
	for (int i = 0; i < 1000 && device_state(fd) == KVMEM_STATE_LIVE; i++)
		usleep(10000);
	CHECK_EQ(device_state(fd), KVMEM_STATE_GONE);
	errno = 0;
	CHECK_FAILS(device_scan(fd, p, PAGE * 512, 0, &s), ESRCH);
	kill(owner, SIGKILL);
	waitpid(owner, &status, 0);
	close(fd);
	close(go[0]);
	close(go[1]);
}

/* A child's inherited descriptor is about the parent's memory, not its own. */
static void AChildScansTheParentsMemory(void)
{
	size_t n = 512;
	char *p = small_pages(n * PAGE);
	int fd = device_open(), status;
	struct kvmem_scan s;
	pid_t child;

	touch_write(p, n, 1);
	CHECK_EQ(device_register(fd, p, n * PAGE, 12), 0);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	child = fork();
	if (!child) {
		/* fork may have copied entries, young or not: settle first. */
		if (device_scan(fd, p, n * PAGE, FLUSH, &s))
			_exit(1);
		for (size_t i = 0; i < 100; i++)
			touch_read(p, i);
		if (device_scan(fd, p, n * PAGE, FLUSH, &s))
			_exit(2);
		_exit(s.young ? 3 : 0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
	CHECK_EQ(device_state(fd), KVMEM_STATE_LIVE);
	touch_read(p, 7);
	CHECK_EQ(device_scan(fd, p, n * PAGE, FLUSH, &s), 0);
	CHECK_EQ(s.young, 1);
	munmap(p, n * PAGE);
	close(fd);
}

static char *churn_base;
#define CHURN_PAGES 4096ul

/* Maps, unmaps, moves, protects, collapses and punches the range all the time. */
static void *churn(void *arg)
{
	unsigned int seed = 7;
	int memfd = *(int *)arg;

	while (!stop) {
		size_t at = (rand_r(&seed) % (CHURN_PAGES / 512)) * HUGE;
		char *p = churn_base + at, *aside;

		switch (rand_r(&seed) % 7) {
		case 0:
			munmap(p, HUGE);
			break;
		case 1:
			mmap(p, HUGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			memset(p, 1, HUGE);
			break;
		case 2:
			aside = mmap(NULL, HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (mremap(p, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside)
				mremap(aside, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, p);
			else
				munmap(aside, HUGE);
			break;
		case 3:
			mmap(p, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, at);
			memset(p, 2, HUGE);
			break;
		case 4:
			madvise(p, HUGE, 25 /* MADV_COLLAPSE */);
			break;
		case 5:
			madvise(p, HUGE, MADV_DONTNEED);
			break;
		case 6:
			mprotect(p + HUGE / 2, HUGE / 2, PROT_READ);
			mprotect(p + HUGE / 2, HUGE / 2, PROT_READ | PROT_WRITE);
			break;
		}
		rounds++;
	}
	return NULL;
}

static void CountsAddUpWhileTheRangeIsRemapped(void)
{
	size_t len = CHURN_PAGES * PAGE;
	int memfd = memfd_create("churn", MFD_CLOEXEC), fd = device_open();
	uint64_t end = now_ns() + 5000000000ull;
	unsigned long scans = 0;
	struct kvmem_scan s;
	pthread_t thread;
	int bad = 0;

	CHECK(!ftruncate(memfd, len));
	churn_base = small_pages(len);
	madvise(churn_base, len, MADV_HUGEPAGE);
	CHECK_EQ(device_register(fd, churn_base, len, 12), 0);
	stop = 0;
	rounds = 0;
	CHECK(!pthread_create(&thread, NULL, churn, &memfd));
	while (now_ns() < end && !bad) {
		bad = device_scan(fd, churn_base, len, scans % 2 ? FLUSH : DECAY, &s) || !adds_up(&s);
		scans++;
	}
	stop = 1;
	pthread_join(thread, NULL);
	CHECK(!bad);
	CHECK(scans > 10 && rounds > 10);
	printf("# %lu scans, %lu changes\n", scans, rounds);
	munmap(churn_base, len);
	close(memfd);
	close(fd);
}

/* Killed in a scan: at once, and nothing is left behind. */
static void AScanEndsWithItsCaller(void)
{
	size_t len = 64ul << 30;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fd = device_open(), status;
	struct kvmem_scan s;
	pid_t child;

	CHECK(p != MAP_FAILED);
	madvise(p, len, MADV_NOHUGEPAGE);
	CHECK_EQ(device_register(fd, p, len, 12), 0);
	child = fork();
	if (!child) {
		for (;;)
			if (device_scan(fd, p, len, DECAY, &s))
				_exit(1);
	}
	usleep(200000);
	kill(child, SIGKILL);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(device_state(fd), KVMEM_STATE_LIVE);
	p[5 * PAGE] = 1;
	CHECK_EQ(device_scan(fd, p, len, 0, &s), 0);
	CHECK_EQ(s.young, 1);
	printf("# 64 GiB of nothing in %.1f ms\n", s.ns / 1e6);
	munmap(p, len);
	close(fd);
}

int main(void)
{
	static const struct claim claims[] = {
		CLAIM(FindsExactlyWhatWasReadInAnonymousMemory),
		CLAIM(FindsExactlyWhatWasReadInAMemfd),
		CLAIM(SparseMemoryIsAbsentWhereNothingIs),
		CLAIM(WithFlushTheHottestPagesAreSeenEveryTime),
		CLAIM(FlushRepairsAScanWithout),
		CLAIM(FlushReachesOtherCpus),
		CLAIM(HeatSaturatesAndDecaysByHalves),
		CLAIM(LargeHeatPagesRiseOnceAScan),
		CLAIM(ThpIsScannedAsAWhole),
		CLAIM(HugetlbIsScannedWherePageTablesAreNotShared),
		CLAIM(FilesAreNotLookedAt),
		CLAIM(AnotherProcessScansByDescriptorUntilTheOwnerExits),
		CLAIM(ExecIsTheOwnersEnd),
		CLAIM(AChildScansTheParentsMemory),
		CLAIM(CountsAddUpWhileTheRangeIsRemapped),
		CLAIM(AScanEndsWithItsCaller),
	};

	return RUN_CLAIMS(claims);
}

// SPDX-License-Identifier: GPL-2.0
/* The ABI: sizes, every field's bad values, what can be mapped and what not. */
#define _GNU_SOURCE
#include "test.h"
#include <linux/capability.h>

_Static_assert(sizeof(struct kvmem_info) == 56, "info");
_Static_assert(sizeof(struct kvmem_register) == 24, "register");
_Static_assert(sizeof(struct kvmem_scan) == 80, "scan");
_Static_assert(sizeof(struct kvmem_range) == 16, "range");
_Static_assert(sizeof(struct kvmem_migrate) == 136, "migrate");
_Static_assert(sizeof(struct kvmem_eventfd) == 8, "eventfd");
_Static_assert(sizeof(struct kvmem_heat_header) == 64, "heat header");

#define REGISTERED_PAGES 2048ul

static char *memory;	/* what ready() registered */

static int ready(unsigned int shift)
{
	int fd = device_open();

	if (!memory) {
		memory = small_pages(REGISTERED_PAGES * PAGE);
		touch_write(memory, REGISTERED_PAGES, 1);
	}
	return fd < 0 || device_register(fd, memory, REGISTERED_PAGES * PAGE, shift) ? -1 : fd;
}

static void InfoTellsWhatIsRegistered(void)
{
	struct kvmem_info info = { .size = sizeof(info) };
	int fd = device_open();

	CHECK_EQ(ioctl(fd, KVMEM_IOC_GET_INFO, &info), 0);
	CHECK_EQ(info.abi, KVMEM_ABI_VERSION);
	CHECK_EQ(info.features, KVMEM_FEATURE_SCAN | KVMEM_FEATURE_SCAN_FLUSH |
		 KVMEM_FEATURE_SCAN_THP | KVMEM_FEATURE_SCAN_HUGE | KVMEM_FEATURE_MIGRATE);
	CHECK_EQ(info.state, KVMEM_STATE_OPEN);
	CHECK(!info.page_shift && !info.start && !info.len && !info.scans && !info.map_bytes);
	close(fd);
	fd = ready(16);
	CHECK(fd >= 0);
	CHECK_EQ(ioctl(fd, KVMEM_IOC_GET_INFO, &info), 0);
	CHECK_EQ(info.state, KVMEM_STATE_LIVE);
	CHECK_EQ(info.page_shift, 16);
	CHECK_EQ(info.start, (uintptr_t)memory);
	CHECK_EQ(info.len, REGISTERED_PAGES * PAGE);
	CHECK_EQ(info.map_bytes, 2 * PAGE);
	close(fd);
}

/* Commands that take a struct, each with one that is accepted. */
static struct kvmem_range one_range;

static unsigned int fill(int k, void *buffer)
{
	static const unsigned int commands[] = {
		KVMEM_IOC_GET_INFO, KVMEM_IOC_SCAN, KVMEM_IOC_MIGRATE, KVMEM_IOC_SET_EVENTFD,
	};
	struct kvmem_info info = { .size = sizeof(info) };
	struct kvmem_scan scan = {
		.size = sizeof(scan), .start = (uintptr_t)memory, .len = PAGE,
	};
	struct kvmem_migrate migrate = {
		.size = sizeof(migrate), .ranges = (uintptr_t)&one_range, .nr_ranges = 1,
	};
	struct kvmem_eventfd eventfd = { .size = sizeof(eventfd), .fd = -1 };

	one_range.start = (uintptr_t)memory;
	one_range.len = PAGE;
	memset(buffer, 0, PAGE);
	switch (k) {
	case 0: memcpy(buffer, &info, sizeof(info)); break;
	case 1: memcpy(buffer, &scan, sizeof(scan)); break;
	case 2: memcpy(buffer, &migrate, sizeof(migrate)); break;
	case 3: memcpy(buffer, &eventfd, sizeof(eventfd)); break;
	}
	return commands[k];
}

static void SizesAreVersioned(void)
{
	static const unsigned int sizes[] = { 56, 80, 136, 8 };
	uint32_t *buffer = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = ready(12);

	CHECK(fd >= 0);
	for (int k = 0; k < 4; k++) {
		unsigned int command = fill(k, buffer), size = sizes[k];

		CHECK_EQ(ioctl(fd, command, buffer), 0);
		/* Of a header that has not grown yet: too small is too old. */
		for (uint32_t bad = 0; bad < size; bad++) {
			fill(k, buffer);
			*buffer = bad;
			CHECK_FAILS(ioctl(fd, command, buffer), EINVAL);
		}
		/* From the future: accepted as long as it asks for nothing new. */
		fill(k, buffer);
		*buffer = PAGE;
		CHECK_EQ(ioctl(fd, command, buffer), 0);
		fill(k, buffer);
		*buffer = size + 8;
		((char *)buffer)[size + 7] = 1;
		CHECK_FAILS(ioctl(fd, command, buffer), E2BIG);
		fill(k, buffer);
		*buffer = PAGE + 1;
		CHECK_FAILS(ioctl(fd, command, buffer), E2BIG);
		*buffer = UINT32_MAX;
		CHECK_FAILS(ioctl(fd, command, buffer), E2BIG);
	}
	munmap(buffer, 3 * PAGE);
	close(fd);
}

static void BadPointersAreFaults(void)
{
	char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
	static const unsigned int sizes[] = { 56, 80, 136, 8 };
	int fd = ready(12);
	struct kvmem_migrate m = {};

	CHECK(fd >= 0);
	munmap(pages + PAGE, PAGE);
	for (int k = 0; k < 4; k++) {
		char copy[PAGE];
		unsigned int command = fill(k, copy);

		CHECK_FAILS(ioctl(fd, command, NULL), EFAULT);
		CHECK_FAILS(ioctl(fd, command, -1ul), EFAULT);
		CHECK_FAILS(ioctl(fd, command, 0xffff800000000000ul), EFAULT);
		/* The size can be read, the rest not. */
		at = pages + PAGE - 4;
		memcpy(at, copy, 4);
		CHECK_FAILS(ioctl(fd, command, at), EFAULT);
		/* It fits just so. */
		at = pages + PAGE - sizes[k];
		memcpy(at, copy, sizes[k]);
		CHECK_EQ(ioctl(fd, command, at), 0);
		/* It can be read, but no answer written. */
		if (command != KVMEM_IOC_SET_EVENTFD) {
			memcpy(at, copy, sizes[k]);
			mprotect(pages, PAGE, PROT_READ);
			CHECK_FAILS(ioctl(fd, command, at), EFAULT);
			mprotect(pages, PAGE, PROT_READ | PROT_WRITE);
		}
	}
	CHECK_FAILS(device_migrate(fd, NULL, 1, 0, &m), EFAULT);
	CHECK_FAILS(device_migrate(fd, (void *)-16l, 1, 0, &m), EFAULT);
	CHECK_FAILS(device_migrate(fd, (void *)(pages + PAGE - 16), 2, 0, &m), EFAULT);
	munmap(pages, PAGE);
	close(fd);
}

static void RegisterRefusesBadRanges(void)
{
	static const struct {
		uint64_t start, len;
		uint32_t shift;
	} bad[] = {
		{ 1 << 21, 1 << 21, 0 }, { 1 << 21, 1 << 21, 11 }, { 1 << 30, 1 << 30, 31 },
		{ 1 << 30, 1 << 30, 64 }, { 1 << 30, 1 << 30, UINT32_MAX },
		{ 1 << 21, 0, 12 }, { (1 << 21) + 1, 1 << 21, 12 }, { 1 << 21, 4097, 12 },
		{ 4096, 1 << 21, 21 }, { 1 << 21, 4096, 21 },
		{ 0xfffffffffffff000, 4096, 12 }, { 0xfffffffffffff000, 8192, 12 },
		{ 4096, 0xfffffffffffff000, 12 }, { 0, 1ul << 63, 12 },
		{ 0, 1ul << 63, 30 }, { 1ul << 63, 1ul << 63, 30 },
		{ 0x00fffffffffff000, 4096, 12 },	/* beyond the last page */
		{ 0xffff888000000000, 1 << 21, 21 },	/* the kernel's */
		{ 0, (64ul << 20 << 12) + 4096, 12 },	/* a heat page too many */
	};
	struct kvmem_register r = { .size = sizeof(r) };
	int fd = device_open();

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		r.start = bad[i].start;
		r.len = bad[i].len;
		r.page_shift = bad[i].shift;
		CHECK_FAILS(ioctl(fd, KVMEM_IOC_REGISTER, &r), EINVAL);
	}
	r.size = 20;
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_REGISTER, &r), EINVAL);
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_REGISTER, NULL), EFAULT);
	/* At the limits it works, mapped or not. */
	CHECK_EQ(device_register(fd, NULL, 0x00007fffc0000000, 30), 0);
	CHECK_FAILS(device_register(fd, NULL, 1 << 21, 12), EBUSY);
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_UNREGISTER, 1), EINVAL);
	CHECK_EQ(ioctl(fd, KVMEM_IOC_UNREGISTER, 0), 0);
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_UNREGISTER, 0), ENXIO);
	CHECK_EQ(device_register(fd, NULL, 64ul << 20 << 12, 12), 0);
	close(fd);
}

static void ScanRefusesBadArguments(void)
{
	struct kvmem_scan s;
	int fd = device_open();
	char *end;

	CHECK_FAILS(device_scan(fd, NULL, PAGE, 0, &s), ENXIO);
	close(fd);
	fd = ready(16);
	CHECK(fd >= 0);
	end = memory + REGISTERED_PAGES * PAGE;
	CHECK_FAILS(device_scan(fd, memory, 65536, 4, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory, 65536, 1u << 31, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory, 0, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory, PAGE, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory + PAGE, 65536, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory - 65536, 65536, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, end, 65536, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, end - 65536, 2 * 65536, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory, -65536ul, 0, &s), EINVAL);
	CHECK_FAILS(device_scan(fd, memory, 0ul - (uintptr_t)memory, 0, &s), EINVAL);
	CHECK_EQ(device_scan(fd, end - 65536, 65536, 0, &s), 0);
	CHECK_EQ(s.scans, 1);
	close(fd);
}

static void MigrateRefusesBadArguments(void)
{
	struct kvmem_range r[3];
	struct kvmem_migrate m = {};
	int fd = device_open();

	CHECK_FAILS(device_migrate(fd, r, 1, 0, &m), ENXIO);
	close(fd);
	fd = ready(12);
	CHECK(fd >= 0);
	for (int i = 0; i < 3; i++) {
		r[i].start = (uintptr_t)memory + i * PAGE;
		r[i].len = PAGE;
	}
	CHECK_EQ(device_migrate(fd, r, 3, 0, &m), 0);
	m.flags = 1;
	CHECK_FAILS(device_migrate(fd, r, 1, 0, &m), EINVAL);
	m.flags = 0;
	CHECK_FAILS(device_migrate(fd, r, 0, 0, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, KVMEM_RANGES_MAX + 1, 0, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, UINT32_MAX, 0, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, 1, -1, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, 1, INT32_MIN, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, 1, INT32_MAX, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, 1, 1 << 20, &m), EINVAL);
	CHECK_FAILS(device_migrate(fd, r, 1, 63, &m), EINVAL);	/* none such */
	/* One bad range and nothing is done. */
	r[2].len = 0;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	r[2].len = PAGE + 1;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	r[2].len = REGISTERED_PAGES * PAGE;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	r[2].len = -PAGE;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	r[2].len = 0ul - r[2].start;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	r[2].start = (uintptr_t)memory - PAGE;
	r[2].len = PAGE;
	CHECK_FAILS(device_migrate(fd, r, 3, 1, &m), EINVAL);
	CHECK_EQ(pages_on(memory, 3, 1), 0);
	close(fd);
}

static void AnEventfdIsSignalled(void)
{
	int fd = ready(12), event = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
	struct kvmem_eventfd e = { .size = sizeof(e), .fd = event };
	struct kvmem_scan s;
	uint64_t count;

	CHECK(fd >= 0);
	CHECK_EQ(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), 0);
	CHECK_FAILS(read(event, &count, 8), EAGAIN);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(device_scan(fd, memory, PAGE, 0, &s), 0);
	CHECK_FAILS(device_scan(fd, memory, PAGE + 1, 0, &s), EINVAL);
	CHECK(read(event, &count, 8) == 8);
	CHECK_EQ(count, 3);
	e.fd = other;
	CHECK_EQ(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), 0);
	CHECK_EQ(device_scan(fd, memory, PAGE, 0, &s), 0);
	CHECK_FAILS(read(event, &count, 8), EAGAIN);
	CHECK(read(other, &count, 8) == 8);
	/* Its own end of it may be closed: nobody is told any more. */
	close(other);
	CHECK_EQ(device_scan(fd, memory, PAGE, 0, &s), 0);
	e.fd = -2;
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), EBADF);
	e.fd = 1000;
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), EBADF);
	e.fd = fd;
	CHECK_FAILS(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), EINVAL);
	e.fd = -1;
	CHECK_EQ(ioctl(fd, KVMEM_IOC_SET_EVENTFD, &e), 0);
	close(event);
	close(fd);
}

static void HeatIsMappedReadOnlyForGood(void)
{
	int fd = ready(12);
	size_t len;
	const struct kvmem_heat_header *header;
	char *p;

	CHECK(fd >= 0);
	header = device_map(fd, &len);
	CHECK(header);
	CHECK_EQ(len, 2 * PAGE);
	CHECK_EQ(header->magic, KVMEM_HEAT_MAGIC);
	CHECK(!memcmp(&header->magic, "kvmemHT1", 8));
	CHECK_EQ(header->version, KVMEM_HEAT_VERSION);
	CHECK_EQ(header->header_bytes, PAGE);
	CHECK_EQ(header->page_shift, 12);
	CHECK_EQ(header->state, KVMEM_STATE_LIVE);
	CHECK_EQ(header->start, (uintptr_t)memory);
	CHECK_EQ(header->count, REGISTERED_PAGES);
	CHECK_EQ(header->seq, 0);

	CHECK_FAILS(mprotect((void *)header, len, PROT_READ | PROT_WRITE), EACCES);
	CHECK_FAILS((long)mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), EACCES);
	CHECK_FAILS((long)mmap(NULL, len, PROT_WRITE, MAP_SHARED, fd, 0), EACCES);
	CHECK_FAILS((long)mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0), EINVAL);
	CHECK_FAILS((long)mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), EINVAL);
	/* Beyond its end: neither mapped nor reached by growing. */
	CHECK_FAILS((long)mmap(NULL, len + PAGE, PROT_READ, MAP_SHARED, fd, 0), EINVAL);
	CHECK_FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, len), EINVAL);
	CHECK_FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1l << 62), EINVAL);
	CHECK_FAILS((long)mremap((void *)header, len, len + PAGE, MREMAP_MAYMOVE), EFAULT);
	p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
	CHECK(p != MAP_FAILED);
	munmap(p, PAGE);
	munmap((void *)header, len);
	close(fd);
	fd = device_open();
	CHECK_FAILS((long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0), ENXIO);
	close(fd);
	CHECK_FAILS(open(KVMEM_DEVICE, O_RDWR), EACCES);
	CHECK_FAILS(open(KVMEM_DEVICE, O_WRONLY), EACCES);
}

static void UnknownCommandsAreRefused(void)
{
	int fd = ready(12);
	char buffer[PAGE] = {};

	CHECK(fd >= 0);
	for (unsigned int nr = 6; nr < 256; nr++)
		CHECK_FAILS(ioctl(fd, _IO(KVMEM_IOC_MAGIC, nr), buffer), ENOTTY);
	CHECK_FAILS(ioctl(fd, _IOR(KVMEM_IOC_MAGIC, 0, struct kvmem_info), buffer), ENOTTY);
	CHECK_FAILS(read(fd, buffer, 1), EINVAL);
	CHECK_FAILS(lseek(fd, 1, SEEK_SET), ESPIPE);
	close(fd);
}

/* Half a gigabyte of 4 KiB pages is 32 pages of heat and one of header. */
static void HeatCountsAsLockedMemory(void)
{
	struct rlimit limit = { 34 * PAGE, 34 * PAGE };
	int status;
	pid_t child = fork();

	if (!child) {
		struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct __user_cap_data_struct data[2] = {};
		int a = device_open(), b = device_open();

		if (setrlimit(RLIMIT_MEMLOCK, &limit) || syscall(SYS_capset, &header, data))
			_exit(1);
		if (device_register(a, NULL, 1ul << 29, 12))
			_exit(2);
		if (device_register(b, NULL, 1ul << 29, 12) != -1 || errno != ENOMEM)
			_exit(3);
		if (ioctl(a, KVMEM_IOC_UNREGISTER, 0) || device_register(b, NULL, 1ul << 29, 12))
			_exit(4);
		close(b);
		if (device_register(a, NULL, 1ul << 29, 12))
			_exit(5);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
}

static long cgroup_current(void)
{
	FILE *f = fopen("/sys/fs/cgroup/kvmem_test/memory.current", "r");
	long bytes = -1;

	if (f) {
		if (fscanf(f, "%ld", &bytes) != 1)
			bytes = -1;
		fclose(f);
	}
	return bytes;
}

static int cgroup_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	close(fd);
	return ok ? 0 : -1;
}

/* 16 MiB of heat are charged, and over the limit it is refused, not killed for. */
static void HeatIsChargedToTheCgroup(void)
{
	int status;
	pid_t child;

	cgroup_write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir("/sys/fs/cgroup/kvmem_test", 0755) && errno != EEXIST) {
		printf("# no cgroup here\n");
		return;
	}
	CHECK(cgroup_current() >= 0);
	child = fork();
	if (!child) {
		int fd = device_open();
		long before;

		if (cgroup_write("/sys/fs/cgroup/kvmem_test/cgroup.procs", "0"))
			_exit(1);
		before = cgroup_current();
		if (device_register(fd, NULL, 16ul << 20 << 12, 12))
			_exit(2);
		if (cgroup_current() - before < 16l << 20)
			_exit(3);
		if (ioctl(fd, KVMEM_IOC_UNREGISTER, 0) || cgroup_current() - before > 4l << 20)
			_exit(4);
		if (cgroup_write("/sys/fs/cgroup/kvmem_test/memory.max", "8388608"))
			_exit(5);
		if (device_register(fd, NULL, 16ul << 20 << 12, 12) != -1 || errno != ENOMEM)
			_exit(6);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
	rmdir("/sys/fs/cgroup/kvmem_test");
}

static int trace_write(const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/tracing/%s", file);
	return cgroup_write(path, text);
}

static void ScansAndMigrationsAreTraced(void)
{
	struct kvmem_range range = { (uintptr_t)memory, 300 * PAGE };
	struct kvmem_migrate m = {};
	char line[512], want[512];
	bool scanned = false, migrated = false, stepped = false;
	struct kvmem_scan s;
	int fd = ready(12);
	FILE *f;

	CHECK(fd >= 0);
	CHECK(!trace_write("trace", "\n"));
	CHECK(!trace_write("events/kvmem/enable", "1"));
	CHECK_EQ(device_scan(fd, memory, 1000 * PAGE, KVMEM_SCAN_DECAY, &s), 0);
	CHECK_EQ(device_migrate(fd, &range, 1, 1, &m), 0);
	CHECK(!trace_write("events/kvmem/enable", "0"));
	CHECK_EQ(m.moved, 300);
	f = fopen("/sys/kernel/tracing/trace", "r");
	CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		snprintf(want, sizeof(want),
			 "kvmem_scan: owner=%d start=%#lx len=%#lx flags=0x1 young=%llu old=%llu absent=0",
			 getpid(), (uintptr_t)memory, 1000 * PAGE, s.young, s.old);
		scanned |= !!strstr(line, want);
		snprintf(want, sizeof(want), "kvmem_migrate: owner=%d node=1 moved=300 resident=0",
			 getpid());
		migrated |= !!strstr(line, want);
		snprintf(want, sizeof(want),
			 "kvmem_migrate_step: owner=%d node=1 start=%#lx wanted=300 moved=300",
			 getpid(), (uintptr_t)memory);
		stepped |= !!strstr(line, want);
	}
	fclose(f);
	CHECK(scanned);
	CHECK(migrated);
	CHECK(stepped);
	m.node = 0;
	CHECK_EQ(device_migrate(fd, &range, 1, 0, &m), 0);
	close(fd);
}

int main(void)
{
	static const struct claim claims[] = {
		CLAIM(InfoTellsWhatIsRegistered),
		CLAIM(SizesAreVersioned),
		CLAIM(BadPointersAreFaults),
		CLAIM(RegisterRefusesBadRanges),
		CLAIM(ScanRefusesBadArguments),
		CLAIM(MigrateRefusesBadArguments),
		CLAIM(AnEventfdIsSignalled),
		CLAIM(HeatIsMappedReadOnlyForGood),
		CLAIM(UnknownCommandsAreRefused),
		CLAIM(HeatCountsAsLockedMemory),
		CLAIM(HeatIsChargedToTheCgroup),
		CLAIM(ScansAndMigrationsAreTraced),
	};

	return RUN_CLAIMS(claims);
}

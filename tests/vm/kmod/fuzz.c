// SPDX-License-Identifier: GPL-2.0
/*
 * kmod_fuzz COUNT [SEED]: commands at random, from several threads on shared
 * descriptors, with memory that comes and goes.  It claims nothing of what they
 * return but that every success adds up; the kernel's log tells the rest.
 */
#define _GNU_SOURCE
#include "test.h"

#define PAGES 1024ul
#define THREADS 3
#define FDS 4

static char *memory;
static int fds[FDS];
static long count;
static unsigned long succeeded[8];

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* A number that something may hinge on. */
static uint64_t number(uint64_t *r)
{
	static const uint64_t edges[] = {
		0, 1, 2, 4095, 4096, 4097, 1 << 21, 1 << 30, INT32_MAX, UINT32_MAX,
		1ul << 32, 1ul << 47, INT64_MAX, 1ul << 63, UINT64_MAX, UINT64_MAX - 4095,
	};

	switch (next_random(r) % 8) {
	case 0:
		return edges[next_random(r) % (sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return next_random(r);
	case 2:
		return (uintptr_t)memory + next_random(r) % (2 * PAGES) * PAGE;
	default:
		return next_random(r) % PAGES * PAGE;
	}
}

static uint64_t address(uint64_t *r)
{
	return next_random(r) % 32 ? (uintptr_t)memory + next_random(r) % PAGES * PAGE : number(r);
}

static uint64_t length(uint64_t *r)
{
	return next_random(r) % 16 ? (1 + next_random(r) % 128) * PAGE : number(r);
}

static bool add_up(int command, const void *arg)
{
	const struct kvmem_scan *s = arg;

	return command != 3 ||
	       s->young + s->old + s->absent + s->unsupported == s->len / PAGE;
}

static void one(uint64_t *r)
{
	uint64_t words[PAGE / 8] = {};
	struct kvmem_range ranges[4];
	int command = next_random(r) % 5 ? 3 + (int)(next_random(r) % 2) : (int)(next_random(r) % 8);
	static const unsigned int sizes[] = { 56, 24, 0, 80, 136, 8, 8, 8 };
	uint32_t size = sizes[command];
	int fd = fds[next_random(r) % FDS];

	for (int i = 0; i < 4; i++) {
		ranges[i].start = address(r);
		ranges[i].len = length(r);
	}
	if (next_random(r) % 16 == 0)
		for (int i = 0; i < 24; i++)
			words[i] = number(r);
	if (next_random(r) % 16 == 0)
		size = (uint32_t)number(r);
	switch (command) {
	case 1: {
		uint32_t shift = next_random(r) % 8 ? 12 : (uint32_t)(next_random(r) % 40);

		words[0] = size | (uint64_t)shift << 32;
		words[1] = next_random(r) % 8 ? (uintptr_t)memory : address(r);
		words[2] = next_random(r) % 8 ? PAGES * PAGE : number(r);
		break;
	}
	case 3:
		words[0] = size | (next_random(r) % 8 ? next_random(r) % 4 : next_random(r)) << 32;
		words[1] = address(r);
		words[2] = length(r);
		break;
	case 4:
		words[0] = size | (next_random(r) % 32 ? 0 : next_random(r) << 32);
		words[1] = next_random(r) % 16 ? (uintptr_t)ranges : number(r);
		words[2] = (next_random(r) % 8 ? 1 + next_random(r) % 4 : (uint32_t)number(r)) |
			   (next_random(r) % 8 ? next_random(r) % 2 : number(r)) << 32;
		words[3] = next_random(r) % 2 ? 0 : number(r);
		words[4] = next_random(r) % 2 ? 0 : number(r);
		break;
	default:
		words[0] = size | next_random(r) << 32;
	}
	/* Of UNREGISTER few, or there is seldom anything to scan. */
	if (command == 2 && next_random(r) % 4)
		return;
	if (!ioctl(fd, _IO(KVMEM_IOC_MAGIC, command), command == 2 ? NULL : words)) {
		__atomic_fetch_add(&succeeded[command], 1, __ATOMIC_RELAXED);
		if (!add_up(command, words)) {
			printf("not ok - a scan's counts do not add up\n");
			_exit(1);
		}
	}
	switch (next_random(r) % 256) {
	case 0: {
		size_t len;
		void *p = (void *)device_map(fd, &len);

		if (p)
			munmap(p, len);
		break;
	}
	case 1:
		mmap(memory + next_random(r) % (PAGES - 64) * PAGE, 64 * PAGE,
		     PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	case 2:
		munmap(memory + next_random(r) % PAGES * PAGE, PAGE);
		break;
	case 3:
		madvise(memory, PAGES * PAGE, MADV_DONTNEED);
		break;
	case 4: {
		int i = next_random(r) % FDS, fresh = device_open();

		if (fresh >= 0) {
			dup3(fresh, fds[i], O_CLOEXEC);
			close(fresh);
		}
		break;
	}
	case 5: {
		/* An owner that dies: its descriptor stays. */
		int pair[2], got;

		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			break;
		pid_t child = fork();

		if (!child) {
			got = device_open();
			_exit(device_register(got, memory, PAGES * PAGE, 12) || send_fd(pair[1], got));
		}
		close(pair[1]);
		got = receive_fd(pair[0]);
		if (got >= 0) {
			dup3(got, fds[next_random(r) % FDS], O_CLOEXEC);
			close(got);
		}
		close(pair[0]);
		waitpid(child, NULL, 0);
		break;
	}
	default:
		break;
	}
}

static void *fuzz(void *arg)
{
	uint64_t r = (uintptr_t)arg;

	for (long i = 0; i < count; i++)
		one(&r);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 20260731;

	setvbuf(stdout, NULL, _IOLBF, 0);
	count = (argc > 1 ? atol(argv[1]) : 20000) / THREADS;
	memory = small_pages(2 * PAGES * PAGE);
	for (int i = 0; i < FDS; i++)
		fds[i] = device_open();
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, fuzz, (void *)(seed * 2654435761u + i + 1)))
			return 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	for (int i = 0; i < FDS; i++)
		close(fds[i]);
	printf("# seed %lu, succeeded:", seed);
	for (int i = 0; i < 8; i++)
		printf(" %lu", succeeded[i]);
	printf("\n%s - ThousandsOfRandomCommands\n",
	       succeeded[1] && succeeded[3] && succeeded[4] ? "ok" : "not ok");
	return !(succeeded[1] && succeeded[3] && succeeded[4]);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * kmod_load load FILE | unload | claims FILE
 *
 * The module comes and goes, and never while somebody uses it.
 */
#define _GNU_SOURCE
#include "test.h"

static const char *module_file;

static int load(void)
{
	int fd = open(module_file, O_RDONLY | O_CLOEXEC);
	int rc = fd < 0 ? -1 : (int)syscall(SYS_finit_module, fd, "", 0);

	close(fd);
	return rc;
}

static int unload(void)
{
	return syscall(SYS_delete_module, "kvmem", O_NONBLOCK);
}

static void LoadsAndUnloadsAHundredTimes(void)
{
	for (int i = 0; i < 100; i++) {
		CHECK_EQ(load(), 0);
		CHECK_EQ(access(KVMEM_DEVICE, R_OK), 0);
		CHECK_EQ(unload(), 0);
		CHECK_FAILS(access(KVMEM_DEVICE, F_OK), ENOENT);
	}
}

static void AnOpenDescriptorHoldsTheModule(void)
{
	int fd;

	CHECK_EQ(load(), 0);
	fd = device_open();
	CHECK(fd >= 0);
	CHECK_FAILS(unload(), EWOULDBLOCK);
	CHECK_EQ(device_state(fd), KVMEM_STATE_OPEN);
	close(fd);
	CHECK_EQ(unload(), 0);
}

static void AMappingHoldsTheModule(void)
{
	char *p = small_pages(512 * PAGE);
	const struct kvmem_heat_header *header;
	size_t len;
	int fd;

	CHECK_EQ(load(), 0);
	fd = device_open();
	CHECK_EQ(device_register(fd, p, 512 * PAGE, 12), 0);
	header = device_map(fd, &len);
	CHECK(header);
	close(fd);
	CHECK_FAILS(unload(), EWOULDBLOCK);
	CHECK_EQ(header->magic, KVMEM_HEAT_MAGIC);
	munmap((void *)header, len);
	CHECK_EQ(unload(), 0);
}

static volatile int stop;

static void *opener(void *arg)
{
	char *p = small_pages(512 * PAGE);

	(void)arg;
	while (!stop) {
		int fd = device_open();

		if (fd < 0)
			continue;
		device_register(fd, p, 512 * PAGE, 12);
		close(fd);
	}
	return NULL;
}

static void OpensWhileItIsUnloaded(void)
{
	pthread_t thread;
	int unloads = 0, bad = 0;

	CHECK(!pthread_create(&thread, NULL, opener, NULL));
	for (int i = 0; i < 200; i++) {
		if (load() && errno != EEXIST)
			bad++;
		if (!unload())
			unloads++;
	}
	stop = 1;
	pthread_join(thread, NULL);
	CHECK_EQ(bad, 0);
	CHECK(unloads > 0);
	unload();
	CHECK_FAILS(access(KVMEM_DEVICE, F_OK), ENOENT);
}

int main(int argc, char **argv)
{
	static const struct claim claims[] = {
		CLAIM(AnOpenDescriptorHoldsTheModule),
		CLAIM(AMappingHoldsTheModule),
		CLAIM(LoadsAndUnloadsAHundredTimes),
		CLAIM(OpensWhileItIsUnloaded),
	};

	module_file = argc > 2 ? argv[2] : "kvmem.ko";
	if (argc > 1 && !strcmp(argv[1], "claims"))
		return RUN_CLAIMS(claims);
	if (argc > 1 && (strcmp(argv[1], "load") ? unload() : load())) {
		perror(argv[1]);
		return 1;
	}
	return argc < 2;
}

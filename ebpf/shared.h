/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the programs write and the daemon reads. Plain 64-bit counters: they only grow, and a reader
 * that asks twice takes the difference.
 */
#ifndef KVMEM_EBPF_SHARED_H
#define KVMEM_EBPF_SHARED_H

#include <linux/types.h>

/* disk.bpf.c, one a processor. Index of a direction: 0 read, 1 written. */
#define KVMEM_DISK_BUCKETS 32
#define KVMEM_DISK_NAMES 4

/* The kernel's DISK_NAME_LEN, zeroes after the name. */
struct kvmem_disk_name {
	__u64 words[4];
};

struct kvmem_disk {
	__u64 own_bytes[2];   /* asked for by the daemon */
	__u64 other_bytes[2]; /* by everybody else, write-back included */
	__u64 own_count[2];
	__u64 other_count[2];
	/* Requests of either, from issue to completion: bucket i holds [2^i, 2^(i+1)) us, the first
	 * all below 2, the last all above. */
	__u64 latency[2][KVMEM_DISK_BUCKETS];
};

/* stalls.bpf.c: what the kernel's memory management cost a process it was told to follow. */
struct kvmem_stalls {
	__u64 reclaims; /* times a thread had to free memory before it was given any */
	__u64 reclaim_ns;
	__u64 limit_reclaims; /* the same, for a memory cgroup's limit */
	__u64 limit_reclaim_ns;
	__u64 compactions;
	__u64 compaction_ns;
	__u64 migrated_pages; /* OS pages that threads of the process moved, whoever made them */
};

/* By enum migrate_reason, include/linux/migrate_mode.h; of the whole machine. */
#define KVMEM_MIGRATE_REASONS 16

struct kvmem_migrations {
	__u64 moved_pages[KVMEM_MIGRATE_REASONS];
	__u64 failed_pages[KVMEM_MIGRATE_REASONS];
};

/* gpu.bpf.c. A process is told from a later one of the same pid by when it began. */
struct kvmem_gpu_key {
	__u64 start_ns; /* since boot */
	__u32 pid;
	__u32 unused;
};

struct kvmem_gpu_process {
	__u64 device_bytes; /* allocated and not freed */
	__u64 device_peak_bytes;
	__u64 host_bytes; /* of physical memory made on the host side */
	__u64 allocations;
	__u64 frees;
	__u64 failures; /* allocations that the driver refused */
	__u64 untracked; /* allocations that the table had no room for: not in the bytes */
	__u64 contexts;
	__u64 modules;
	__u64 last_ns; /* of CLOCK_MONOTONIC, the last call that was seen */
	__u64 cgroup_id;
	char comm[16];
};

/* How an allocating call tells its size; the cookie of its probes. */
enum kvmem_gpu_call {
	KVMEM_GPU_ALLOC,  /* (pointer *, bytes, ...) */
	KVMEM_GPU_PITCH,  /* (pointer *, pitch *, width, height, ...) */
	KVMEM_GPU_CREATE, /* (handle *, bytes, properties *, ...) */
	KVMEM_GPU_CONTEXT,
	KVMEM_GPU_MODULE,
};

#endif

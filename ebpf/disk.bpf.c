// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * How busy the page store's disk is, for whom, and how long its requests take.
 *
 * Bytes are counted where a bio is submitted, in the context of whoever wants it: a request may be
 * issued later by a worker of the kernel. Latency is that of requests, below every queue of ours.
 * An NVMe disk of several paths takes bios under its own name and has requests under its paths'.
 * Raw tracepoints: no tracefs is needed, and the arguments are the same from 6.1 on.
 */
#include "kernel.h"
#include "shared.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The whole disk, then those below it that carry out its requests; the rest empty. */
const volatile struct kvmem_disk_name disks[KVMEM_DISK_NAMES];
const volatile __u32 daemon_tgid;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kvmem_disk);
} totals SEC(".maps");

/* Requests in flight. One that is dropped for room is one that is not timed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} issued SEC(".maps");

static __always_inline struct kvmem_disk *own_totals(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals, &zero);
}

static __always_inline int name_of(struct gendisk *disk, struct kvmem_disk_name *name)
{
	return disk && bpf_probe_read_kernel_str(name, sizeof(*name),
						 __builtin_preserve_access_index(&disk->disk_name)) > 1;
}

static __always_inline int is_disk(const struct kvmem_disk_name *name, int i)
{
	return name->words[0] == disks[i].words[0] && name->words[1] == disks[i].words[1] &&
	       name->words[2] == disks[i].words[2] && name->words[3] == disks[i].words[3];
}

SEC("raw_tp/block_bio_queue")
int bio_queued(struct bpf_raw_tracepoint_args *ctx)
{
	struct bio *bio = (struct bio *)ctx->args[0];
	struct kvmem_disk_name name = {};
	struct kvmem_disk *sum;
	__u32 op, bytes;

	if (!name_of(BPF_CORE_READ(bio, bi_bdev, bd_disk), &name) || !is_disk(&name, 0))
		return 0;
	op = BPF_CORE_READ(bio, bi_opf) & REQ_OP_MASK;
	if (op > REQ_OP_WRITE)
		return 0;
	sum = own_totals();
	if (!sum)
		return 0;
	bytes = BPF_CORE_READ(bio, bi_iter.bi_size);
	if (current_tgid() == daemon_tgid) {
		sum->own_bytes[op & 1] += bytes;
		sum->own_count[op & 1]++;
	} else {
		sum->other_bytes[op & 1] += bytes;
		sum->other_count[op & 1]++;
	}
	return 0;
}

SEC("raw_tp/block_rq_issue")
int rq_issued(struct bpf_raw_tracepoint_args *ctx)
{
	struct request *rq = (struct request *)ctx->args[0];
	struct kvmem_disk_name name = {};
	__u64 key = (__u64)rq, now;

	if (!name_of(BPF_CORE_READ(rq, q, disk), &name))
		return 0;
	if (!is_disk(&name, 0) && !is_disk(&name, 1) && !is_disk(&name, 2) && !is_disk(&name, 3))
		return 0;
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&issued, &key, &now, BPF_ANY);
	return 0;
}

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 bit = 0;

	/* By hand: a rolled loop is refused by older verifiers. */
	if (value >> 16) { bit += 16; value >>= 16; }
	if (value >> 8) { bit += 8; value >>= 8; }
	if (value >> 4) { bit += 4; value >>= 4; }
	if (value >> 2) { bit += 2; value >>= 2; }
	if (value >> 1) { bit += 1; }
	return bit;
}

SEC("raw_tp/block_rq_complete")
int rq_completed(struct bpf_raw_tracepoint_args *ctx)
{
	struct request *rq = (struct request *)ctx->args[0];
	__u64 key = (__u64)rq, us, *start = bpf_map_lookup_elem(&issued, &key);
	struct kvmem_disk *sum;
	__u32 op, bucket;

	if (!start)
		return 0;
	us = (bpf_ktime_get_ns() - *start) / 1000;
	bpf_map_delete_elem(&issued, &key);
	op = BPF_CORE_READ(rq, cmd_flags) & REQ_OP_MASK;
	sum = own_totals();
	if (op > REQ_OP_WRITE || !sum)
		return 0;
	bucket = us >> 32 ? KVMEM_DISK_BUCKETS - 1 : log2_of(us);
	sum->latency[op & 1][bucket & (KVMEM_DISK_BUCKETS - 1)]++;
	return 0;
}

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What the kernel's own memory management does to the engines: how long their threads freed or
 * compacted memory before they were given any, and who moved how many OS pages.
 *
 * Costs nothing while memory is plenty: none of these points is then reached.
 */
#include "kernel.h"
#include "shared.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* By process; the daemon says which. Bounds what can be followed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct kvmem_stalls);
} followed SEC(".maps");

/* When a thread began, by (thread, kind). */
struct began {
	__u32 tid;
	__u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct began);
	__type(value, __u64);
} begun SEC(".maps");

/* Why a thread is migrating pages, between the start of a batch and its end. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kvmem_migrations);
} migrations SEC(".maps");

enum kind { RECLAIM, LIMIT_RECLAIM, COMPACTION };

static __always_inline int begin(__u32 kind)
{
	struct began key = { .tid = current_tid(), .kind = kind };
	__u32 tgid = current_tgid();
	__u64 now;

	if (!bpf_map_lookup_elem(&followed, &tgid))
		return 0;
	now = bpf_ktime_get_ns();
	bpf_map_update_elem(&begun, &key, &now, BPF_ANY);
	return 0;
}

static __always_inline int end(__u32 kind)
{
	struct began key = { .tid = current_tid(), .kind = kind };
	__u32 tgid = current_tgid();
	struct kvmem_stalls *sum = bpf_map_lookup_elem(&followed, &tgid);
	__u64 ns, *start;

	if (!sum)
		return 0;
	start = bpf_map_lookup_elem(&begun, &key);
	if (!start)
		return 0;
	ns = bpf_ktime_get_ns() - *start;
	bpf_map_delete_elem(&begun, &key);
	switch (kind) {
	case RECLAIM:
		__sync_fetch_and_add(&sum->reclaims, 1);
		__sync_fetch_and_add(&sum->reclaim_ns, ns);
		break;
	case LIMIT_RECLAIM:
		__sync_fetch_and_add(&sum->limit_reclaims, 1);
		__sync_fetch_and_add(&sum->limit_reclaim_ns, ns);
		break;
	default:
		__sync_fetch_and_add(&sum->compactions, 1);
		__sync_fetch_and_add(&sum->compaction_ns, ns);
	}
	return 0;
}

SEC("raw_tp/mm_vmscan_direct_reclaim_begin")
int reclaim_begun(void *ctx)
{
	return begin(RECLAIM);
}

SEC("raw_tp/mm_vmscan_direct_reclaim_end")
int reclaim_ended(void *ctx)
{
	return end(RECLAIM);
}

SEC("raw_tp/mm_vmscan_memcg_reclaim_begin")
int limit_reclaim_begun(void *ctx)
{
	return begin(LIMIT_RECLAIM);
}

SEC("raw_tp/mm_vmscan_memcg_reclaim_end")
int limit_reclaim_ended(void *ctx)
{
	return end(LIMIT_RECLAIM);
}

SEC("raw_tp/mm_compaction_begin")
int compaction_begun(void *ctx)
{
	return begin(COMPACTION);
}

SEC("raw_tp/mm_compaction_end")
int compaction_ended(void *ctx)
{
	return end(COMPACTION);
}

/* mm_migrate_pages has its reason last, behind a number of arguments that differs between kernels:
 * it is taken from the start of the batch. */
SEC("raw_tp/mm_migrate_pages_start")
int migration_begun(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = current_tid(), reason = (__u32)ctx->args[1];

	bpf_map_update_elem(&reasons, &tid, &reason, BPF_ANY);
	return 0;
}

SEC("raw_tp/mm_migrate_pages")
int migration_ended(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 zero = 0, tid = current_tid(), tgid = current_tgid(), reason;
	__u32 *why = bpf_map_lookup_elem(&reasons, &tid);
	struct kvmem_migrations *sum = bpf_map_lookup_elem(&migrations, &zero);
	struct kvmem_stalls *own;

	if (!sum)
		return 0;
	reason = why ? *why : KVMEM_MIGRATE_REASONS - 1;
	if (reason >= KVMEM_MIGRATE_REASONS)
		reason = KVMEM_MIGRATE_REASONS - 1;
	sum->moved_pages[reason] += ctx->args[0];
	sum->failed_pages[reason] += ctx->args[1];
	if (why)
		bpf_map_delete_elem(&reasons, &tid);
	own = bpf_map_lookup_elem(&followed, &tgid);
	if (own)
		__sync_fetch_and_add(&own->migrated_pages, ctx->args[0]);
	return 0;
}

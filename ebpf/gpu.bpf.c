// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Who holds a GPU's memory: control-plane calls of libcuda.so.1, of every process that uses it,
 * whether kvmem is in that process or not. Launches and copies are not probed.
 *
 * An allocation's size is known at entry and its address at return; a free is taken as done at
 * entry, since an address that was allocated is freed for certain by a correct program.
 */
#include "kernel.h"
#include "shared.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct kvmem_gpu_key);
	__type(value, struct kvmem_gpu_process);
} processes SEC(".maps");

/* What is allocated. An address and a handle may be the same number: kind tells them apart. */
struct allocation {
	struct kvmem_gpu_key process;
	__u64 address;
	__u64 is_handle;
};

struct size {
	__u64 bytes;
	__u64 on_host;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allocation);
	__type(value, struct size);
} allocations SEC(".maps");

/* A call that has not returned, by thread. */
struct call {
	__u64 result; /* the caller's pointer */
	__u64 pitch;  /* the same, for KVMEM_GPU_PITCH */
	__u64 bytes;
	__u64 on_host;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline void own_key(struct kvmem_gpu_key *key)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	key->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	key->pid = current_tgid();
	key->unused = 0;
}

static __always_inline struct kvmem_gpu_process *own_process(struct kvmem_gpu_key *key)
{
	struct kvmem_gpu_process *found = bpf_map_lookup_elem(&processes, key);
	struct kvmem_gpu_process fresh = {};

	if (!found) {
		fresh.cgroup_id = bpf_get_current_cgroup_id();
		bpf_map_update_elem(&processes, key, &fresh, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&processes, key);
		if (!found)
			return 0;
	}
	/* Each time: a program takes its name after it has begun. */
	bpf_get_current_comm(found->comm, sizeof(found->comm));
	found->last_ns = bpf_ktime_get_ns();
	return found;
}

SEC("uprobe")
int alloc_entered(struct pt_regs *ctx)
{
	__u64 kind = bpf_get_attach_cookie(ctx);
	__u32 tid = current_tid(), location = 0;
	struct call call = {};

	call.result = PT_REGS_PARM1(ctx);
	if (kind == KVMEM_GPU_PITCH) {
		call.pitch = PT_REGS_PARM2(ctx);
		call.bytes = PT_REGS_PARM4(ctx); /* rows; the pitch is known at return */
	} else {
		call.bytes = PT_REGS_PARM2(ctx);
	}
	if (kind == KVMEM_GPU_CREATE) {
		/* CUmemAllocationProp: type, handle types, then location.type; 1 is a device. */
		bpf_probe_read_user(&location, sizeof(location), (void *)(PT_REGS_PARM3(ctx) + 8));
		call.on_host = location != 1;
	}
	bpf_map_update_elem(&calls, &tid, &call, BPF_ANY);
	return 0;
}

SEC("uretprobe")
int alloc_returned(struct pt_regs *ctx)
{
	__u64 kind = bpf_get_attach_cookie(ctx), pitch = 0;
	__u32 tid = current_tid();
	struct call *call = bpf_map_lookup_elem(&calls, &tid);
	struct kvmem_gpu_process *process;
	struct allocation made = {};
	struct size size;

	if (!call)
		return 0;
	own_key(&made.process);
	process = own_process(&made.process);
	if (!process)
		goto out;
	if ((__u32)PT_REGS_RC(ctx) != 0) {
		__sync_fetch_and_add(&process->failures, 1);
		goto out;
	}
	if (bpf_probe_read_user(&made.address, sizeof(made.address), (void *)call->result))
		goto out;
	if (kind == KVMEM_GPU_PITCH) {
		if (bpf_probe_read_user(&pitch, sizeof(pitch), (void *)call->pitch))
			goto out;
		call->bytes *= pitch;
	}
	made.is_handle = kind == KVMEM_GPU_CREATE;
	size.bytes = call->bytes;
	size.on_host = call->on_host;
	__sync_fetch_and_add(&process->allocations, 1);
	if (bpf_map_update_elem(&allocations, &made, &size, BPF_ANY)) {
		__sync_fetch_and_add(&process->untracked, 1);
		goto out;
	}
	if (size.on_host) {
		__sync_fetch_and_add(&process->host_bytes, size.bytes);
	} else {
		__sync_fetch_and_add(&process->device_bytes, size.bytes);
		if (process->device_bytes > process->device_peak_bytes)
			process->device_peak_bytes = process->device_bytes;
	}
out:
	bpf_map_delete_elem(&calls, &tid);
	return 0;
}

static __always_inline int freed(__u64 address, __u64 is_handle)
{
	struct allocation gone = { .address = address, .is_handle = is_handle };
	struct kvmem_gpu_process *process;
	struct size *size;

	own_key(&gone.process);
	size = bpf_map_lookup_elem(&allocations, &gone);
	if (!size)
		return 0; /* from before we watched, or not an address */
	process = own_process(&gone.process);
	if (process) {
		__sync_fetch_and_add(&process->frees, 1);
		if (size->on_host)
			__sync_fetch_and_sub(&process->host_bytes, size->bytes);
		else
			__sync_fetch_and_sub(&process->device_bytes, size->bytes);
	}
	bpf_map_delete_elem(&allocations, &gone);
	return 0;
}

SEC("uprobe")
int address_freed(struct pt_regs *ctx)
{
	return freed(PT_REGS_PARM1(ctx), 0);
}

SEC("uprobe")
int handle_freed(struct pt_regs *ctx)
{
	return freed(PT_REGS_PARM1(ctx), 1);
}

SEC("uprobe")
int other_entered(struct pt_regs *ctx)
{
	__u64 kind = bpf_get_attach_cookie(ctx);
	struct kvmem_gpu_process *process;
	struct kvmem_gpu_key key;

	own_key(&key);
	process = own_process(&key);
	if (!process)
		return 0;
	if (kind == KVMEM_GPU_CONTEXT)
		__sync_fetch_and_add(&process->contexts, 1);
	else
		__sync_fetch_and_add(&process->modules, 1);
	return 0;
}

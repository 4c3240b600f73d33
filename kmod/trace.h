/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Events for perf, ftrace and BPF (tp/kvmem/...): one a command, and one a page
 * table that had pages to move.  Each takes few arguments and records plain
 * fields: raw tracepoints of many arguments do not load everywhere.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvmem

#if !defined(_KVMEM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _KVMEM_TRACE_H

#include <linux/pid.h>
#include <linux/tracepoint.h>

#include "kvmem.h"

TRACE_EVENT(kvmem_scan,
	TP_PROTO(const struct kvmem_context *ctx, const struct kvmem_scan *arg),
	TP_ARGS(ctx, arg),
	TP_STRUCT__entry(
		__field(pid_t, owner)
		__field(u32, flags)
		__field(u64, start)
		__field(u64, len)
		__field(u64, young)
		__field(u64, old)
		__field(u64, absent)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->owner = pid_nr(ctx->owner);
		__entry->flags = arg->flags;
		__entry->start = arg->start;
		__entry->len = arg->len;
		__entry->young = arg->young;
		__entry->old = arg->old;
		__entry->absent = arg->absent;
		__entry->ns = arg->ns;
	),
	TP_printk("owner=%d start=%#llx len=%#llx flags=%#x young=%llu old=%llu absent=%llu ns=%llu",
		  __entry->owner, __entry->start, __entry->len, __entry->flags,
		  __entry->young, __entry->old, __entry->absent, __entry->ns)
);

TRACE_EVENT(kvmem_migrate,
	TP_PROTO(const struct kvmem_context *ctx, const struct kvmem_migrate *arg),
	TP_ARGS(ctx, arg),
	TP_STRUCT__entry(
		__field(pid_t, owner)
		__field(int, node)
		__field(u64, moved)
		__field(u64, resident)
		__field(u64, pinned)
		__field(u64, busy)
		__field(u64, ns)
		__field(u32, stop)
	),
	TP_fast_assign(
		__entry->owner = pid_nr(ctx->owner);
		__entry->node = arg->node;
		__entry->moved = arg->moved;
		__entry->resident = arg->resident;
		__entry->pinned = arg->pinned;
		__entry->busy = arg->busy;
		__entry->ns = arg->ns;
		__entry->stop = arg->stop;
	),
	TP_printk("owner=%d node=%d moved=%llu resident=%llu pinned=%llu busy=%llu stop=%u ns=%llu",
		  __entry->owner, __entry->node, __entry->moved,
		  __entry->resident, __entry->pinned, __entry->busy,
		  __entry->stop, __entry->ns)
);

TRACE_EVENT(kvmem_migrate_step,
	TP_PROTO(const struct kvmem_context *ctx, unsigned long start, int node,
		 unsigned int wanted, unsigned int moved),
	TP_ARGS(ctx, start, node, wanted, moved),
	TP_STRUCT__entry(
		__field(pid_t, owner)
		__field(int, node)
		__field(u64, start)
		__field(u32, wanted)
		__field(u32, moved)
	),
	TP_fast_assign(
		__entry->owner = pid_nr(ctx->owner);
		__entry->node = node;
		__entry->start = start;
		__entry->wanted = wanted;
		__entry->moved = moved;
	),
	TP_printk("owner=%d node=%d start=%#llx wanted=%u moved=%u",
		  __entry->owner, __entry->node, __entry->start,
		  __entry->wanted, __entry->moved)
);

#endif /* _KVMEM_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>

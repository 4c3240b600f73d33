/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * kvmem kernel module: which pages of one registered range were touched, and
 * moving its 4 KiB pages between NUMA nodes.
 *
 * One context per open file of /dev/kvmem:
 *
 *   open ──REGISTER──▶ live ──owner exits or execs──▶ gone
 *     ▲                  │                              │
 *     └────UNREGISTER────┴──────────────────────────────┘
 *
 * REGISTER acts on the caller's own address space and on nobody else's; the
 * caller may then pass the descriptor to another process (SCM_RIGHTS, fork),
 * which may scan and migrate that range and nothing more.  The descriptor is
 * the capability: there is no way to name another process to this device, so
 * the node can be open to all (mode 0444).
 *
 * The node is opened O_RDONLY; a descriptor open for writing is refused with
 * -EACCES.  That is what keeps mappings of the heat read-only for good: mmap
 * and mprotect themselves refuse to make a shared mapping of a file that is
 * not open for writing writable.
 *
 * Every command takes a pointer to a struct that begins with its own size.
 * A caller built against an older header passes a smaller size and gets what
 * fits; a newer caller on an older module gets -E2BIG if it set a field that
 * the module does not know.  Fields marked "out" are ignored on entry.
 *
 * Addresses are of the owner's address space.  "OS page" is 4 KiB; "heat
 * page" is 1 << page_shift bytes, chosen at REGISTER.
 *
 * Errors, besides those named at each command:
 *   -EINVAL   size, flags, alignment or range outside what was registered
 *   -E2BIG    see above
 *   -EFAULT   the struct, or an array it points to, cannot be read or written
 *   -ENXIO    nothing is registered
 *   -ESRCH    the owner's address space is gone
 *   -EINTR    the caller is being killed
 *   -ENOTTY   unknown command
 */
#ifndef _UAPI_KVMEM_KMOD_H
#define _UAPI_KVMEM_KMOD_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KVMEM_DEVICE "/dev/kvmem"

/* Raised only if an existing command changes its meaning. */
#define KVMEM_ABI_VERSION 1

#define KVMEM_IOC_MAGIC 0xBC

/* The size is in the struct, hence _IO: the number never changes with it. */
#define KVMEM_IOC_GET_INFO    _IO(KVMEM_IOC_MAGIC, 0x00)
#define KVMEM_IOC_REGISTER    _IO(KVMEM_IOC_MAGIC, 0x01)
#define KVMEM_IOC_UNREGISTER  _IO(KVMEM_IOC_MAGIC, 0x02) /* argument 0 */
#define KVMEM_IOC_SCAN        _IO(KVMEM_IOC_MAGIC, 0x03)
#define KVMEM_IOC_MIGRATE     _IO(KVMEM_IOC_MAGIC, 0x04)
#define KVMEM_IOC_SET_EVENTFD _IO(KVMEM_IOC_MAGIC, 0x05)

#define KVMEM_FEATURE_SCAN       (1ULL << 0)
#define KVMEM_FEATURE_SCAN_FLUSH (1ULL << 1) /* KVMEM_SCAN_FLUSH */
#define KVMEM_FEATURE_SCAN_THP   (1ULL << 2) /* PMD-mapped THP are scanned */
#define KVMEM_FEATURE_SCAN_HUGE  (1ULL << 3) /* 2 MiB hugetlb too, see SCAN */
#define KVMEM_FEATURE_MIGRATE    (1ULL << 4) /* anonymous OS pages */

/* kvmem_info.state, kvmem_heat_header.state */
#define KVMEM_STATE_OPEN 0 /* nothing registered (any more) */
#define KVMEM_STATE_LIVE 1
#define KVMEM_STATE_GONE 2 /* owner exited or called exec */

/* Heat pages of one context: at most this many, whatever their size. */
#define KVMEM_HEAT_PAGES_MAX (64ULL << 20)
#define KVMEM_PAGE_SHIFT_MIN 12
#define KVMEM_PAGE_SHIFT_MAX 30
#define KVMEM_RANGES_MAX     1024

/**
 * struct kvmem_info - GET_INFO: what this module can do, what is registered.
 * @size:        sizeof(struct kvmem_info)
 * @abi:         out: KVMEM_ABI_VERSION
 * @features:    out: KVMEM_FEATURE_*
 * @state:       out: KVMEM_STATE_*
 * @page_shift:  out: of a heat page; 0 in KVMEM_STATE_OPEN, as all below
 * @start:       out: first byte of the range
 * @len:         out: bytes
 * @scans:       out: scans completed since REGISTER
 * @map_bytes:   out: how much of the descriptor can be mapped, header included
 *
 * Never fails for want of a registration or of its owner.
 */
struct kvmem_info {
	__u32 size;
	__u32 abi;
	__u64 features;
	__u32 state;
	__u32 page_shift;
	__u64 start;
	__u64 len;
	__u64 scans;
	__u64 map_bytes;
};

/**
 * struct kvmem_register - REGISTER: watch a range of the caller's memory.
 * @size:        sizeof(struct kvmem_register)
 * @page_shift:  KVMEM_PAGE_SHIFT_MIN to KVMEM_PAGE_SHIFT_MAX
 * @start:       aligned to 1 << page_shift
 * @len:         not 0, aligned likewise, at most KVMEM_HEAT_PAGES_MAX heat pages
 *
 * Nothing need be mapped there yet.  The heat is charged to the caller's
 * memory cgroup, and until UNREGISTER counts as memory that the caller locked
 * (RLIMIT_MEMLOCK, CAP_IPC_LOCK).
 *
 * -EBUSY   this descriptor has a range already
 * -ENOMEM  no memory for the heat, or over RLIMIT_MEMLOCK
 */
struct kvmem_register {
	__u32 size;
	__u32 page_shift;
	__u64 start;
	__u64 len;
};

/* Halve every heat byte of the range before counting this scan. */
#define KVMEM_SCAN_DECAY (1U << 0)
/*
 * Flush the owner's TLB entries after clearing, so that the next access is
 * seen even where a translation was cached.  Without it the hottest pages are
 * the ones missed.  Costs an interrupt on every CPU that runs the owner.
 */
#define KVMEM_SCAN_FLUSH (1U << 1)

/**
 * struct kvmem_scan - SCAN: read and clear the accessed bits of a range.
 * @size:         sizeof(struct kvmem_scan)
 * @flags:        KVMEM_SCAN_*
 * @start:        aligned to a heat page, within what is registered
 * @len:          bytes, likewise
 * @young:        out: OS pages touched since the last scan
 * @old:          out: OS pages present and not touched
 * @absent:       out: OS pages not present, or where nothing is mapped
 * @unsupported:  out: OS pages of mappings that are never looked at
 * @huge:         out: those of @young and @old that a huge page table entry maps
 * @scans:        out: this scan's number, counted from 1
 * @ns:           out: how long it took
 *
 * young + old + absent + unsupported is always len / 4096.
 *
 * Looked at: anonymous memory, shmem and memfd, shared or private; huge pages
 * count as touched as a whole.  hugetlb: 2 MiB pages, in private mappings and
 * in those registered with userfaultfd for MINOR or WP; elsewhere the kernel
 * may share their page tables between processes, and they are "unsupported".
 * Everything else (files, devices) is too.
 *
 * Accesses by DMA (GPU, io_uring fixed buffers) and by the kernel through its
 * own mapping leave no trace in accessed bits, and so none here.  A cleared
 * bit is passed on to page reclaim where the kernel tracks idle pages.
 *
 * One scan or migration runs at a time per descriptor; others wait.
 */
struct kvmem_scan {
	__u32 size;
	__u32 flags;
	__u64 start;
	__u64 len;
	__u64 young;
	__u64 old;
	__u64 absent;
	__u64 unsupported;
	__u64 huge;
	__u64 scans;
	__u64 ns;
};

struct kvmem_range {
	__u64 start;
	__u64 len;
};

/* kvmem_migrate.stop: why it did not look at every range to its end */
#define KVMEM_STOP_NONE      0 /* it did */
#define KVMEM_STOP_MAX_PAGES 1
#define KVMEM_STOP_DEADLINE  2
#define KVMEM_STOP_NOMEM     3 /* the target node has no free page */

/**
 * struct kvmem_migrate - MIGRATE: move OS pages to a node.
 * @size:         sizeof(struct kvmem_migrate)
 * @flags:        0
 * @ranges:       pointer to struct kvmem_range: aligned to OS pages
 * @nr_ranges:    1 to KVMEM_RANGES_MAX
 * @node:         a node with memory
 * @max_pages:    stop once so many pages have been tried; 0: no limit
 * @deadline_ns:  stop at this time of CLOCK_MONOTONIC; 0: none.  At least one
 *                step (of up to 512 pages) is made.
 * @moved:        out: OS pages now on @node that were not
 * @resident:     out: OS pages that were there already
 * @absent:       out: OS pages not present, zero pages, and unmapped addresses
 * @huge:         out: OS pages in huge pages of any kind; move_pages(2) moves
 *                those whole, this command would have to split them
 * @shared:       out: OS pages mapped by others as well, left where they are
 *                because the caller lacks CAP_SYS_NICE
 * @policy:       out: OS pages whose VMA's policy excludes @node
 * @pinned:       out: OS pages pinned for DMA
 * @busy:         out: OS pages that could not be isolated or were in use; try
 *                again later
 * @unsupported:  out: OS pages of files and memfds; move_pages(2) moves those
 * @next:         out: address to go on from, if @stop is not KVMEM_STOP_NONE
 * @next_range:   out: index of the range it lies in
 * @stop:         out: KVMEM_STOP_*
 * @ns:           out: how long it took
 *
 * The counts from @moved to @unsupported add up to the OS pages looked at: all
 * before @next.  A page that is not moved stays where and as it was.
 *
 * Pages come from @node or from nowhere: no reclaim, no other node.  A policy
 * set with mbind(2) is honoured; a task's own is not (no module can read it).
 * @node must be in the owner's cpuset.
 *
 * -EPERM   the caller is another process than the owner, without CAP_SYS_NICE
 * -EACCES  @node is not in the owner's cpuset
 */
struct kvmem_migrate {
	__u32 size;
	__u32 flags;
	__u64 ranges;
	__u32 nr_ranges;
	__s32 node;
	__u64 max_pages;
	__u64 deadline_ns;
	__u64 moved;
	__u64 resident;
	__u64 absent;
	__u64 huge;
	__u64 shared;
	__u64 policy;
	__u64 pinned;
	__u64 busy;
	__u64 unsupported;
	__u64 next;
	__u32 next_range;
	__u32 stop;
	__u64 ns;
};

/**
 * struct kvmem_eventfd - SET_EVENTFD: be told of scans and of the owner's end.
 * @size:  sizeof(struct kvmem_eventfd)
 * @fd:    an eventfd, replacing the one before; -1: none
 *
 * 1 is added after every completed scan and when the state becomes GONE (at
 * once, if it is).  Works before REGISTER.
 *
 * -EBADF, -EINVAL  not an eventfd
 */
struct kvmem_eventfd {
	__u32 size;
	__s32 fd;
};

#define KVMEM_HEAT_MAGIC   0x3154486d656d766bULL /* "kvmemHT1" in memory */
#define KVMEM_HEAT_VERSION 1

/**
 * struct kvmem_heat_header - the first OS page of the mapping.
 * @magic:         KVMEM_HEAT_MAGIC
 * @version:       KVMEM_HEAT_VERSION
 * @header_bytes:  where the heat begins: one byte per heat page
 * @page_shift:    as registered
 * @state:         KVMEM_STATE_*: OPEN once unregistered, then it never changes
 * @start:         as registered
 * @count:         heat pages
 * @seq:           odd while a scan writes; a reader that needs all bytes from
 *                 one scan reads it before and after (each byte is whole anyway)
 * @scans:         scans completed
 * @scanned_ns:    when the last one ended, CLOCK_MONOTONIC
 *
 * mmap the descriptor MAP_SHARED, PROT_READ, offset 0, at most
 * kvmem_info.map_bytes.  The mapping outlives UNREGISTER and the owner.
 *
 * A heat byte rises by 128 (up to 255) in a scan that finds any OS page of its
 * heat page touched, and is halved first where KVMEM_SCAN_DECAY is given: with
 * it, 128 and more means "touched since the last scan".
 */
struct kvmem_heat_header {
	__u64 magic;
	__u32 version;
	__u32 header_bytes;
	__u32 page_shift;
	__u32 state;
	__u64 start;
	__u64 count;
	__u64 seq;
	__u64 scans;
	__u64 scanned_ns;
};

#define KVMEM_HEAT_STEP 128

#endif /* _UAPI_KVMEM_KMOD_H */

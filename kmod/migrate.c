// SPDX-License-Identifier: GPL-2.0
/*
 * Moves OS pages to a node, a page table at a time:
 *
 *   classify   under the page table lock: which pages are wanted, and why the
 *              others are not
 *   allocate   on the target, or the step ends at the page that got none
 *   migrate    migrate_vma_*(): unmap, copy, map again
 *
 * In that order, so that nothing is unmapped that then has nowhere to go.  A
 * page that migrate_vma cannot have to itself is mapped again where it was.
 *
 * migrate_pages() would keep huge pages whole and move those of files; it is not
 * exported.  migrate_vma splits the ones, and frees the others while they still
 * name the file they were of (a "bad page" to the allocator): both are left to
 * move_pages(2).
 */
#include <linux/capability.h>
#include <linux/hugetlb.h>
#include <linux/highmem.h>
#include <linux/ktime.h>
#include <linux/mempolicy.h>
#include <linux/migrate.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "kvmem.h"
#include "trace.h"

enum kvmem_kind {
	KVMEM_KIND_MOVED,
	KVMEM_KIND_RESIDENT,
	KVMEM_KIND_ABSENT,
	KVMEM_KIND_HUGE,
	KVMEM_KIND_SHARED,
	KVMEM_KIND_POLICY,
	KVMEM_KIND_PINNED,
	KVMEM_KIND_BUSY,
	KVMEM_KIND_UNSUPPORTED,
	KVMEM_KIND_WANTED,	/* until it is moved or busy */
};

struct kvmem_step {
	struct kvmem_context *ctx;
	int node;
	bool shared_too;
	u64 wanted_max;

	unsigned long start;
	unsigned int nr;		/* pages looked at, from start */
	unsigned int wanted;
	u8 kind[PTRS_PER_PTE];
	struct page *target[PTRS_PER_PTE];	/* first "wanted" entries */
	unsigned long src[PTRS_PER_PTE];
	unsigned long dst[PTRS_PER_PTE];
};

static u8 kvmem_classify_pte(const struct kvmem_step *step, pte_t pte)
{
	struct page *page;

	if (!pte_present(pte) || pte_special(pte))
		return KVMEM_KIND_ABSENT;
	page = pte_page(pte);
	if (PageCompound(page))
		return KVMEM_KIND_HUGE;
	if (!PageAnon(page))
		return KVMEM_KIND_UNSUPPORTED;
	if (page_to_nid(page) == step->node)
		return KVMEM_KIND_RESIDENT;
	/* Not compound, so this is how often it is mapped, less one. */
	if (!step->shared_too && atomic_read(&page->_mapcount) > 0)
		return KVMEM_KIND_SHARED;
	if (folio_maybe_dma_pinned(page_folio(page)))
		return KVMEM_KIND_PINNED;
	return KVMEM_KIND_WANTED;
}

static void kvmem_classify_ptes(pte_t *pte, unsigned long addr,
				unsigned long end, void *data)
{
	struct kvmem_step *step = data;

	for (; addr < end; pte++, addr += PAGE_SIZE) {
		u8 kind = kvmem_classify_pte(step, READ_ONCE(*pte));

		if (kind == KVMEM_KIND_WANTED) {
			if (step->wanted == step->wanted_max)
				return;
			step->wanted++;
		}
		step->kind[step->nr++] = kind;
	}
}

static void kvmem_classify_all(struct kvmem_step *step, unsigned long addr,
			       unsigned long end, u8 kind)
{
	for (; addr < end; addr += PAGE_SIZE)
		step->kind[step->nr++] = kind;
}

#ifdef CONFIG_NUMA
/*
 * Modes that ask for nodes, as opposed to preferring some, bind here too.
 * vm_policy is stable while mmap_lock is held.
 */
static bool kvmem_policy_allows(struct vm_area_struct *vma, int node)
{
	struct mempolicy *policy = vma->vm_policy;

	if (!policy)
		return true;
	switch (policy->mode) {
	case MPOL_DEFAULT:
	case MPOL_LOCAL:
	case MPOL_PREFERRED:
	case MPOL_PREFERRED_MANY:
		return true;
	}
	return node_isset(node, policy->nodes);
}
#else
static bool kvmem_policy_allows(struct vm_area_struct *vma, int node)
{
	return true;
}
#endif

static void kvmem_classify(struct kvmem_step *step, struct vm_area_struct *vma,
			   unsigned long addr, unsigned long end)
{
	struct mm_struct *mm = step->ctx->mm;
	pmd_t *pmd, entry;

	step->start = addr;
	step->nr = 0;
	step->wanted = 0;
	if (!vma || addr < vma->vm_start)
		return kvmem_classify_all(step, addr, end, KVMEM_KIND_ABSENT);
	if (is_vm_hugetlb_page(vma))
		return kvmem_classify_all(step, addr, end, KVMEM_KIND_HUGE);
	if (!kvmem_vma_is_memory(vma))
		return kvmem_classify_all(step, addr, end, KVMEM_KIND_UNSUPPORTED);
	if (!kvmem_policy_allows(vma, step->node))
		return kvmem_classify_all(step, addr, end, KVMEM_KIND_POLICY);

	pmd = kvmem_pmd_lookup(mm, addr);
	if (pmd && kvmem_pte_table(mm, pmd, addr, end, kvmem_classify_ptes, step))
		return;
	entry = pmd ? READ_ONCE(*pmd) : __pmd(0);
	kvmem_classify_all(step, addr, end,
			   pmd_present(entry) ? KVMEM_KIND_HUGE : KVMEM_KIND_ABSENT);
}

/* Fewer targets than wanted pages: the step ends before the first without. */
static void kvmem_step_cut(struct kvmem_step *step, unsigned int targets)
{
	unsigned int i, seen = 0;

	for (i = 0; i < step->nr; i++) {
		if (step->kind[i] != KVMEM_KIND_WANTED)
			continue;
		if (seen++ == targets)
			break;
	}
	step->nr = i;
	step->wanted = targets;
}

/* Returns KVMEM_STOP_NOMEM if there was not enough for the whole step. */
static u32 kvmem_step_allocate(struct kvmem_step *step)
{
	gfp_t gfp = (GFP_HIGHUSER_MOVABLE & ~__GFP_RECLAIM) | __GFP_THISNODE |
		    __GFP_NOWARN;
	unsigned int i;

	for (i = 0; i < step->wanted; i++) {
		step->target[i] = alloc_pages_node(step->node, gfp, 0);
		if (!step->target[i]) {
			kvmem_step_cut(step, i);
			return KVMEM_STOP_NOMEM;
		}
	}
	return KVMEM_STOP_NONE;
}

/*
 * True if the page that was isolated may be moved.  It is locked and unmapped,
 * so nobody begins to write it back or to change it, but a writeback that began
 * before may still run: migrate_vma_pages() takes for granted that none does.
 */
static bool kvmem_page_ready(const struct kvmem_step *step, struct page *page)
{
	return page && !PageCompound(page) && PageAnon(page) &&
	       !PageWriteback(page) && !PageHWPoison(page) &&
	       page_to_nid(page) != step->node;
}

static void kvmem_step_migrate(struct kvmem_step *step,
			       struct vm_area_struct *vma)
{
	unsigned int first, last, i, n, used = 0, spare;
	struct migrate_vma args = {};

	for (first = 0; step->kind[first] != KVMEM_KIND_WANTED; first++)
		;
	for (last = step->nr - 1; step->kind[last] != KVMEM_KIND_WANTED; last--)
		;
	n = last - first + 1;
	memset(step->src, 0, n * sizeof(*step->src));
	memset(step->dst, 0, n * sizeof(*step->dst));
	args.vma = vma;
	args.start = step->start + first * PAGE_SIZE;
	args.end = args.start + n * PAGE_SIZE;
	args.src = step->src;
	args.dst = step->dst;
	args.flags = MIGRATE_VMA_SELECT_SYSTEM;

	if (!migrate_vma_setup(&args)) {
		for (i = 0; i < n; i++) {
			struct page *page = migrate_pfn_to_page(step->src[i]);
			struct page *target;

			/* Others between the wanted ones go back as they are. */
			if (step->kind[first + i] != KVMEM_KIND_WANTED ||
			    !(step->src[i] & MIGRATE_PFN_MIGRATE) ||
			    !kvmem_page_ready(step, page))
				continue;
			target = step->target[used++];
			lock_page(target);
			copy_highpage(target, page);
			step->dst[i] = migrate_pfn(page_to_pfn(target));
		}
		migrate_vma_pages(&args);
		for (i = 0; i < n; i++) {
			if (step->dst[i] && step->src[i] & MIGRATE_PFN_MIGRATE)
				step->kind[first + i] = KVMEM_KIND_MOVED;
		}
		/* Frees the targets of those that were not moved after all. */
		migrate_vma_finalize(&args);
	}
	for (i = 0; i < step->nr; i++) {
		if (step->kind[i] == KVMEM_KIND_WANTED)
			step->kind[i] = KVMEM_KIND_BUSY;
	}
	for (spare = used; spare < step->wanted; spare++)
		__free_page(step->target[spare]);
}

static void kvmem_step_count(const struct kvmem_step *step,
			     struct kvmem_migrate *arg)
{
	u64 count[KVMEM_KIND_WANTED] = {};
	unsigned int i;

	for (i = 0; i < step->nr; i++)
		count[step->kind[i]]++;
	arg->moved += count[KVMEM_KIND_MOVED];
	arg->resident += count[KVMEM_KIND_RESIDENT];
	arg->absent += count[KVMEM_KIND_ABSENT];
	arg->huge += count[KVMEM_KIND_HUGE];
	arg->shared += count[KVMEM_KIND_SHARED];
	arg->policy += count[KVMEM_KIND_POLICY];
	arg->pinned += count[KVMEM_KIND_PINNED];
	arg->busy += count[KVMEM_KIND_BUSY];
	arg->unsupported += count[KVMEM_KIND_UNSUPPORTED];
	if (step->wanted)
		trace_kvmem_migrate_step(step->ctx, step->start, step->node,
					 step->wanted, count[KVMEM_KIND_MOVED]);
}

/* One page table's worth of [addr, end).  Returns KVMEM_STOP_* or an error. */
static long kvmem_step_run(struct kvmem_step *step, unsigned long addr,
			   unsigned long end, struct kvmem_migrate *arg)
{
	struct mm_struct *mm = step->ctx->mm;
	unsigned long next = pmd_addr_end(addr, end);
	struct vm_area_struct *vma;
	u32 stop = KVMEM_STOP_NONE;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = find_vma(mm, addr);
	if (vma)
		next = min(next, addr < vma->vm_start ? vma->vm_start : vma->vm_end);
	kvmem_classify(step, vma, addr, next);
	if (addr + step->nr * PAGE_SIZE < next)
		stop = KVMEM_STOP_MAX_PAGES;
	if (step->wanted) {
		u32 short_of = kvmem_step_allocate(step);

		if (short_of)
			stop = short_of;
		if (step->wanted)
			kvmem_step_migrate(step, vma);
	}
	mmap_read_unlock(mm);
	kvmem_step_count(step, arg);
	return stop;
}

static long kvmem_migrate_ranges(struct kvmem_step *step,
				 struct kvmem_migrate *arg,
				 const struct kvmem_range *ranges)
{
	u64 left = arg->max_pages ?: U64_MAX;
	u32 i;

	for (i = 0; i < arg->nr_ranges; i++) {
		unsigned long addr = ranges[i].start;
		unsigned long end = addr + ranges[i].len;

		while (addr < end) {
			long rc;

			if (fatal_signal_pending(current))
				return -EINTR;
			step->wanted_max = left;
			rc = kvmem_step_run(step, addr, end, arg);
			if (rc < 0)
				return rc;
			left -= step->wanted;
			addr += step->nr * PAGE_SIZE;
			if (!rc && arg->deadline_ns &&
			    ktime_get_ns() >= arg->deadline_ns)
				rc = KVMEM_STOP_DEADLINE;
			if (rc && (addr < end || i + 1 < arg->nr_ranges)) {
				arg->stop = rc;
				arg->next = addr;
				arg->next_range = i;
				return 0;
			}
			cond_resched();
		}
	}
	return 0;
}

/* What mbind(2) and move_pages(2) ask of a node, as far as it can be asked. */
static long kvmem_migrate_allowed(struct kvmem_context *ctx, int node)
{
	struct task_struct *owner;
	long rc = 0;

	if (current->mm != ctx->mm && !capable(CAP_SYS_NICE))
		return -EPERM;
	if (node < 0 || node >= MAX_NUMNODES || !node_state(node, N_MEMORY))
		return -EINVAL;
	owner = get_pid_task(ctx->owner, PIDTYPE_TGID);
	if (!owner)
		return -ESRCH;
#ifdef CONFIG_CPUSETS
	task_lock(owner);
	if (!node_isset(node, owner->mems_allowed))
		rc = -EACCES;
	task_unlock(owner);
#endif
	put_task_struct(owner);
	return rc;
}

long kvmem_migrate(struct kvmem_context *ctx, struct kvmem_migrate *arg)
{
	struct kvmem_range *ranges;
	struct kvmem_step *step;
	u64 began = ktime_get_ns();
	long rc;
	u32 i;

	if (arg->flags || !arg->nr_ranges || arg->nr_ranges > KVMEM_RANGES_MAX)
		return -EINVAL;
	rc = kvmem_migrate_allowed(ctx, arg->node);
	if (rc)
		return rc;
	arg->moved = 0;
	arg->resident = 0;
	arg->absent = 0;
	arg->huge = 0;
	arg->shared = 0;
	arg->policy = 0;
	arg->pinned = 0;
	arg->busy = 0;
	arg->unsupported = 0;
	arg->next = 0;
	arg->next_range = 0;
	arg->stop = KVMEM_STOP_NONE;

	ranges = vmemdup_user(u64_to_user_ptr(arg->ranges),
			      arg->nr_ranges * sizeof(*ranges));
	if (IS_ERR(ranges))
		return PTR_ERR(ranges);
	rc = -EINVAL;
	for (i = 0; i < arg->nr_ranges; i++) {
		if (!kvmem_context_covers(ctx, ranges[i].start, ranges[i].len,
					  PAGE_SHIFT))
			goto free_ranges;
	}
	rc = -ENOMEM;
	step = kvmalloc(sizeof(*step), GFP_KERNEL_ACCOUNT);
	if (!step)
		goto free_ranges;
	step->ctx = ctx;
	step->node = arg->node;
	step->shared_too = capable(CAP_SYS_NICE);
	rc = kvmem_migrate_ranges(step, arg, ranges);
	arg->ns = ktime_get_ns() - began;
	kvfree(step);
free_ranges:
	kvfree(ranges);
	return rc;
}

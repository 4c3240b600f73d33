// SPDX-License-Identifier: GPL-2.0
/*
 * What a descriptor stands for: whose memory, how long it lives, its heat.
 *
 * open -> live   REGISTER
 * live -> gone   the owner's address space is torn down (exit, exec)
 * live|gone -> open   UNREGISTER, last close
 *
 * A context holds the mm_struct (mmgrab), never the address space: an owner
 * that exits frees its memory at once, whoever holds the descriptor.
 */
#include <linux/log2.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "kvmem.h"

/*
 * eventfd_signal() lost its count, and its result, between the kernels that
 * are supported.  The compiler picks the call by the function's type.
 */
static inline void kvmem_signal_count(u64 (*signal)(struct eventfd_ctx *, u64),
				      struct eventfd_ctx *eventfd)
{
	signal(eventfd, 1);
}

static inline void kvmem_signal_one(void (*signal)(struct eventfd_ctx *),
				    struct eventfd_ctx *eventfd)
{
	signal(eventfd);
}

#define kvmem_signal(eventfd)						\
	_Generic(&eventfd_signal,					\
		 u64 (*)(struct eventfd_ctx *, u64): kvmem_signal_count,	\
		 void (*)(struct eventfd_ctx *): kvmem_signal_one)	\
	(eventfd_signal, eventfd)

static void kvmem_heat_release(struct kref *kref)
{
	struct kvmem_heat *heat = container_of(kref, struct kvmem_heat, kref);
	unsigned long i;

	vunmap(heat->header);
	for (i = 0; i < heat->nr_pages; i++)
		__free_page(heat->pages[i]);
	kvfree(heat->pages);
	kfree(heat);
}

static void kvmem_heat_put(struct kvmem_heat *heat)
{
	kref_put(&heat->kref, kvmem_heat_release);
}

/*
 * Pages of our own under a VM_USERMAP mapping: vmalloc_user() would do, but
 * charges no memory cgroup.
 */
static struct kvmem_heat *kvmem_heat_create(unsigned long nr_pages)
{
	struct kvmem_heat *heat;
	int rc = -ENOMEM;

	heat = kzalloc(sizeof(*heat), GFP_KERNEL_ACCOUNT);
	if (!heat)
		return ERR_PTR(-ENOMEM);
	kref_init(&heat->kref);
	heat->pages = kvcalloc(nr_pages, sizeof(*heat->pages), GFP_KERNEL_ACCOUNT);
	if (!heat->pages)
		goto fail;
	while (heat->nr_pages < nr_pages) {
		/* Fails rather than have somebody killed for it. */
		struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO |
					       __GFP_RETRY_MAYFAIL | __GFP_NOWARN);

		if (!page)
			goto fail;
		heat->pages[heat->nr_pages++] = page;
		if (fatal_signal_pending(current)) {
			rc = -EINTR;
			goto fail;
		}
		cond_resched();
	}
	heat->header = vmap(heat->pages, nr_pages, VM_USERMAP, PAGE_KERNEL);
	if (!heat->header)
		goto fail;
	heat->bytes = (u8 *)heat->header + PAGE_SIZE;
	return heat;

fail:
	kvmem_heat_put(heat);
	return ERR_PTR(rc);
}

/* Under state_lock. */
static void kvmem_context_signal(struct kvmem_context *ctx)
{
	if (ctx->eventfd)
		kvmem_signal(ctx->eventfd);
}

/*
 * From exit_mmap(), or from mmu_notifier_unregister(): that one has left
 * KVMEM_STATE_LIVE before.
 */
static void kvmem_notifier_release(struct mmu_notifier *notifier,
				   struct mm_struct *mm)
{
	struct kvmem_context *ctx =
		container_of(notifier, struct kvmem_context, notifier);

	spin_lock(&ctx->state_lock);
	if (ctx->state == KVMEM_STATE_LIVE) {
		ctx->state = KVMEM_STATE_GONE;
		WRITE_ONCE(ctx->heat->header->state, KVMEM_STATE_GONE);
		kvmem_context_signal(ctx);
	}
	spin_unlock(&ctx->state_lock);
}

static const struct mmu_notifier_ops kvmem_notifier_ops = {
	.release = kvmem_notifier_release,
};

struct kvmem_context *kvmem_context_create(void)
{
	struct kvmem_context *ctx = kzalloc(sizeof(*ctx), GFP_KERNEL_ACCOUNT);

	if (ctx) {
		mutex_init(&ctx->lock);
		spin_lock_init(&ctx->state_lock);
		ctx->state = KVMEM_STATE_OPEN;
		ctx->notifier.ops = &kvmem_notifier_ops;
	}
	return ctx;
}

void kvmem_context_destroy(struct kvmem_context *ctx)
{
	/* The last reference to the file: nobody else is in here. */
	if (ctx->mm)
		kvmem_context_unregister(ctx);
	if (ctx->eventfd)
		eventfd_ctx_put(ctx->eventfd);
	kfree(ctx);
}

static int kvmem_register_check(const struct kvmem_register *arg)
{
	u64 unit, end;

	if (arg->page_shift < KVMEM_PAGE_SHIFT_MIN ||
	    arg->page_shift > KVMEM_PAGE_SHIFT_MAX)
		return -EINVAL;
	unit = 1ULL << arg->page_shift;
	if (!arg->len || !IS_ALIGNED(arg->start | arg->len, unit))
		return -EINVAL;
	if (check_add_overflow(arg->start, arg->len, &end) || end > TASK_SIZE)
		return -EINVAL;
	if (arg->len >> arg->page_shift > KVMEM_HEAT_PAGES_MAX)
		return -EINVAL;
	return 0;
}

/* Nothing is registered any more, for mmap, GET_INFO and the notifier. */
static void kvmem_context_clear(struct kvmem_context *ctx)
{
	struct kvmem_heat *heat = ctx->heat;

	spin_lock(&ctx->state_lock);
	ctx->state = KVMEM_STATE_OPEN;
	ctx->heat = NULL;
	ctx->scans = 0;
	WRITE_ONCE(heat->header->state, KVMEM_STATE_OPEN);
	spin_unlock(&ctx->state_lock);
	kvmem_heat_put(heat);
}

static unsigned long kvmem_heat_pages(u64 len, unsigned int page_shift)
{
	return 1 + DIV_ROUND_UP(len >> page_shift, PAGE_SIZE);
}

long kvmem_context_register(struct kvmem_context *ctx,
			    const struct kvmem_register *arg)
{
	struct kvmem_heat_header *header;
	struct kvmem_heat *heat;
	unsigned long nr_pages;
	int rc;

	rc = kvmem_register_check(arg);
	if (rc)
		return rc;
	if (ctx->mm)
		return -EBUSY;

	/* Kernel memory of a size that the caller names: bounded as by mlock(2). */
	nr_pages = kvmem_heat_pages(arg->len, arg->page_shift);
	rc = account_locked_vm(current->mm, nr_pages, true);
	if (rc)
		return rc;
	heat = kvmem_heat_create(nr_pages);
	if (IS_ERR(heat)) {
		rc = PTR_ERR(heat);
		goto uncharge;
	}
	header = heat->header;
	header->magic = KVMEM_HEAT_MAGIC;
	header->version = KVMEM_HEAT_VERSION;
	header->header_bytes = PAGE_SIZE;
	header->page_shift = arg->page_shift;
	header->state = KVMEM_STATE_LIVE;
	header->start = arg->start;
	header->count = arg->len >> arg->page_shift;

	/* Before the notifier is there, which may come to call at once. */
	spin_lock(&ctx->state_lock);
	ctx->start = arg->start;
	ctx->end = arg->start + arg->len;
	ctx->page_shift = arg->page_shift;
	ctx->heat = heat;
	ctx->state = KVMEM_STATE_LIVE;
	spin_unlock(&ctx->state_lock);

	rc = mmu_notifier_register(&ctx->notifier, current->mm);
	if (rc) {
		kvmem_context_clear(ctx);
		goto uncharge;
	}
	ctx->mm = current->mm;
	mmgrab(ctx->mm);
	ctx->owner = get_task_pid(current, PIDTYPE_TGID);
	return 0;

uncharge:
	account_locked_vm(current->mm, nr_pages, false);
	return rc;
}

long kvmem_context_unregister(struct kvmem_context *ctx)
{
	if (!ctx->mm)
		return -ENXIO;
	/* First, so that the notifier's release takes it for no exit. */
	kvmem_context_clear(ctx);
	mmu_notifier_unregister(&ctx->notifier, ctx->mm);
	account_locked_vm(ctx->mm,
			  kvmem_heat_pages(ctx->end - ctx->start, ctx->page_shift),
			  false);
	mmdrop(ctx->mm);
	ctx->mm = NULL;
	put_pid(ctx->owner);
	ctx->owner = NULL;
	return 0;
}

void kvmem_context_info(struct kvmem_context *ctx, struct kvmem_info *info)
{
	spin_lock(&ctx->state_lock);
	info->state = ctx->state;
	if (ctx->heat) {
		info->page_shift = ctx->page_shift;
		info->start = ctx->start;
		info->len = ctx->end - ctx->start;
		info->scans = ctx->scans;
		info->map_bytes = (u64)ctx->heat->nr_pages << PAGE_SHIFT;
	}
	spin_unlock(&ctx->state_lock);
}

long kvmem_context_set_eventfd(struct kvmem_context *ctx,
			       const struct kvmem_eventfd *arg)
{
	struct eventfd_ctx *eventfd = NULL;

	if (arg->fd != -1) {
		eventfd = eventfd_ctx_fdget(arg->fd);
		if (IS_ERR(eventfd))
			return PTR_ERR(eventfd);
	}
	spin_lock(&ctx->state_lock);
	swap(ctx->eventfd, eventfd);
	if (ctx->state == KVMEM_STATE_GONE)
		kvmem_context_signal(ctx);
	spin_unlock(&ctx->state_lock);
	if (eventfd)
		eventfd_ctx_put(eventfd);
	return 0;
}

int kvmem_context_map(struct kvmem_context *ctx, struct vm_area_struct *vma)
{
	struct kvmem_heat *heat;
	int rc;

	spin_lock(&ctx->state_lock);
	heat = ctx->heat;
	if (heat)
		kref_get(&heat->kref);
	spin_unlock(&ctx->state_lock);
	if (!heat)
		return -ENXIO;
	/* Checks offset and length, and marks the VMA as what it is. */
	rc = remap_vmalloc_range(vma, heat->header, vma->vm_pgoff);
	kvmem_heat_put(heat);
	return rc;
}

void kvmem_context_scanned(struct kvmem_context *ctx)
{
	spin_lock(&ctx->state_lock);
	ctx->scans++;
	kvmem_context_signal(ctx);
	spin_unlock(&ctx->state_lock);
}

int kvmem_context_get_mm(struct kvmem_context *ctx)
{
	if (!ctx->mm)
		return -ENXIO;
	if (!mmget_not_zero(ctx->mm))
		return -ESRCH;
	return 0;
}

/*
 * The last user of an address space tears it down: not in a scan of somebody
 * else's, which could take seconds.
 */
void kvmem_context_put_mm(struct kvmem_context *ctx)
{
	mmput_async(ctx->mm);
}

bool kvmem_context_covers(const struct kvmem_context *ctx, u64 start, u64 len,
			  unsigned int align_shift)
{
	u64 end;

	return len && IS_ALIGNED(start | len, 1ULL << align_shift) &&
	       !check_add_overflow(start, len, &end) &&
	       start >= ctx->start && end <= ctx->end;
}

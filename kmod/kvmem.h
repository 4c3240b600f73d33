/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inside kvmem.ko: one context per open file, and who may touch what of it.
 *
 * Locks, outermost first:
 *   ctx->lock          one command at a time; owns registration and heat bytes
 *   mm->mmap_lock      read, for one chunk of page tables at a time
 *   page table locks   write heat bytes under them, take nothing inside
 *   ctx->state_lock    what mmap, GET_INFO and the notifier need: these run
 *                      under mmap_lock, or in exit_mmap(), where ctx->lock is
 *                      not to be had.  mmu_notifier_unregister() waits for a
 *                      running ->release, and is called with ctx->lock held.
 */
#ifndef _KVMEM_H
#define _KVMEM_H

#include <linux/eventfd.h>
#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>

#include "include/uapi/kvmem_kmod.h"

/*
 * Accessed bits are cleared the way x86's ptep_test_and_clear_young() does it,
 * which is not exported.
 */
#ifndef CONFIG_X86_64
#error "kvmem supports x86-64 only"
#endif

/*
 * What is mapped to user space: a header page, then the heat bytes.  Mappings
 * hold its pages; the kref is for the moment in which one is being made.
 */
struct kvmem_heat {
	struct kref kref;
	struct page **pages;
	unsigned long nr_pages;		/* header included */
	struct kvmem_heat_header *header;
	u8 *bytes;
};

struct kvmem_context {
	struct mutex lock;

	/* Constant while registered; written under lock. */
	struct mm_struct *mm;		/* mmgrab()bed; NULL: nothing registered */
	struct pid *owner;
	struct mmu_notifier notifier;
	unsigned long start;
	unsigned long end;
	unsigned int page_shift;
	u64 scans;			/* written under lock and state_lock */

	spinlock_t state_lock;
	/* The rest is under state_lock. */
	u32 state;
	struct kvmem_heat *heat;	/* written under lock as well */
	struct eventfd_ctx *eventfd;
};

/* context.c */
struct kvmem_context *kvmem_context_create(void);
void kvmem_context_destroy(struct kvmem_context *ctx);
long kvmem_context_register(struct kvmem_context *ctx,
			    const struct kvmem_register *arg);
long kvmem_context_unregister(struct kvmem_context *ctx);
void kvmem_context_info(struct kvmem_context *ctx, struct kvmem_info *info);
long kvmem_context_set_eventfd(struct kvmem_context *ctx,
			       const struct kvmem_eventfd *arg);
int kvmem_context_map(struct kvmem_context *ctx, struct vm_area_struct *vma);
/* A scan was completed: count it and tell who waits. */
void kvmem_context_scanned(struct kvmem_context *ctx);

/*
 * The owner's address space, held against exit: 0, -ENXIO or -ESRCH.
 * REQUIRES: ctx->lock.
 */
int kvmem_context_get_mm(struct kvmem_context *ctx);
void kvmem_context_put_mm(struct kvmem_context *ctx);

/* True if [start, start + len) lies in the range.  REQUIRES: ctx->lock. */
bool kvmem_context_covers(const struct kvmem_context *ctx, u64 start, u64 len,
			  unsigned int align_shift);

/* pagetable.c */

/*
 * kvmem_pmd_lookup - the PMD that maps @addr, or NULL if there is no table.
 * REQUIRES: mmap_lock held; @addr in a VMA that kvmem looks at, so that no
 * entry above the PMD can be a leaf.
 */
pmd_t *kvmem_pmd_lookup(struct mm_struct *mm, unsigned long addr);

/* Called once for a page table, on the entries of [addr, end), locked. */
typedef void (*kvmem_pte_fn)(pte_t *pte, unsigned long addr, unsigned long end,
			     void *data);

/*
 * kvmem_pte_table - run @fn on the page table below @pmd.
 *
 * False, and @fn not called, if there is no table there, or none any more.
 * REQUIRES: mmap_lock held; [addr, end) within one PMD.
 */
bool kvmem_pte_table(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
		     unsigned long end, kvmem_pte_fn fn, void *data);

/* Anonymous or shmem, and nothing special about it. */
bool kvmem_vma_is_memory(struct vm_area_struct *vma);
/* hugetlb whose page tables are this process's own. */
bool kvmem_vma_is_own_hugetlb(struct vm_area_struct *vma);

/* scan.c, migrate.c.  REQUIRES: ctx->lock. */
long kvmem_scan(struct kvmem_context *ctx, struct kvmem_scan *arg);
long kvmem_migrate(struct kvmem_context *ctx, struct kvmem_migrate *arg);

#endif /* _KVMEM_H */

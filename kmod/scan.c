// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages were touched: reads and clears accessed bits.
 *
 * The walk holds mmap_lock for reading, lets go of it whenever somebody waits
 * for it, and takes page table locks one at a time.  What changes behind it is
 * seen next time.
 */
#include <linux/hugetlb.h>
#include <linux/ktime.h>
#include <linux/mmap_lock.h>
#include <linux/page_idle.h>
#include <linux/pgtable.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <asm/tlbflush.h>

#include "kvmem.h"

/* Steps of at most a PMD under one hold of mmap_lock: 32 MiB, under 1 ms. */
#define KVMEM_SCAN_STEPS 16

struct kvmem_scan_state {
	struct kvmem_context *ctx;
	struct kvmem_scan *arg;
	unsigned long unit;		/* the heat page being looked at */
	bool unit_young;
	bool reclaim;			/* these pages age in reclaim's eyes */
};

#define KVMEM_UNIT_NONE ULONG_MAX

static void kvmem_heat_unit(struct kvmem_scan_state *s, unsigned long unit,
			    bool young)
{
	u8 *byte = s->ctx->heat->bytes + unit;
	u8 old = *byte;
	u8 new = s->arg->flags & KVMEM_SCAN_DECAY ? old / 2 : old;

	if (young)
		new = min(new + KVMEM_HEAT_STEP, U8_MAX);
	if (new != old)
		WRITE_ONCE(*byte, new);
}

/* Heat pages [unit, end) that were not touched: eight at a time where it goes. */
static void kvmem_heat_cool(struct kvmem_scan_state *s, unsigned long unit,
			    unsigned long end)
{
	if (!(s->arg->flags & KVMEM_SCAN_DECAY))
		return;
	while (unit < end) {
		if (IS_ALIGNED(unit, sizeof(u64)) && end - unit >= sizeof(u64)) {
			u64 *word = (u64 *)(s->ctx->heat->bytes + unit);

			if (*word)
				WRITE_ONCE(*word, (*word >> 1) & 0x7f7f7f7f7f7f7f7fULL);
			unit += sizeof(u64);
		} else {
			kvmem_heat_unit(s, unit++, false);
		}
	}
}

static void kvmem_heat_commit(struct kvmem_scan_state *s)
{
	if (s->unit != KVMEM_UNIT_NONE)
		kvmem_heat_unit(s, s->unit, s->unit_young);
}

/*
 * Notes OS pages for the heat.  Called for every address of the range, in
 * order, once: so each heat page decays once and rises at most once a scan.
 * The last heat page is kept open, as more of its OS pages may come.
 */
static void kvmem_heat_note(struct kvmem_scan_state *s, unsigned long addr,
			    unsigned long end, bool young)
{
	const struct kvmem_context *ctx = s->ctx;
	unsigned long first = (addr - ctx->start) >> ctx->page_shift;
	unsigned long last = (end - 1 - ctx->start) >> ctx->page_shift;

	if (first != s->unit) {
		kvmem_heat_commit(s);
		s->unit = first;
		s->unit_young = false;
	}
	s->unit_young |= young;
	if (first == last)
		return;
	kvmem_heat_commit(s);
	if (!young)
		kvmem_heat_cool(s, first + 1, last);
	for (first++; young && first < last; first++)
		kvmem_heat_unit(s, first, true);
	s->unit = last;
	s->unit_young = young;
}

static void kvmem_scan_ptes(pte_t *ptep, unsigned long addr, unsigned long end,
			    void *data)
{
	struct kvmem_scan_state *s = data;

	for (; addr < end; ptep++, addr += PAGE_SIZE) {
		pte_t pte = READ_ONCE(*ptep);
		bool young = false;

		if (!pte_present(pte)) {
			s->arg->absent++;
		} else if (pte_young(pte)) {
			clear_bit(_PAGE_BIT_ACCESSED, (unsigned long *)ptep);
			young = true;
			s->arg->young++;
			if (!pte_special(pte))
				folio_set_young(page_folio(pte_page(pte)));
		} else {
			s->arg->old++;
		}
		kvmem_heat_note(s, addr, addr + PAGE_SIZE, young);
	}
}

/* False if a table has taken the huge page's place. */
static bool kvmem_scan_huge(struct kvmem_scan_state *s, pmd_t *pmd,
			    unsigned long addr, unsigned long end)
{
	unsigned long n = (end - addr) >> PAGE_SHIFT;
	spinlock_t *ptl = pmd_lock(s->ctx->mm, pmd);
	pmd_t entry = READ_ONCE(*pmd);
	bool young;

	if (!pmd_present(entry) || !pmd_trans_huge(entry)) {
		spin_unlock(ptl);
		return false;
	}
	young = pmd_young(entry);
	if (young) {
		clear_bit(_PAGE_BIT_ACCESSED, (unsigned long *)pmd);
		if (s->reclaim)
			folio_set_young(page_folio(pmd_page(entry)));
	}
	spin_unlock(ptl);

	s->arg->huge += n;
	if (young)
		s->arg->young += n;
	else
		s->arg->old += n;
	kvmem_heat_note(s, addr, end, young);
	return true;
}

static void kvmem_scan_step(struct kvmem_scan_state *s, unsigned long addr,
			    unsigned long end)
{
	pmd_t *pmd = kvmem_pmd_lookup(s->ctx->mm, addr);
	int tries;

	/* An entry that keeps changing is being mapped: young next time. */
	for (tries = 0; pmd && tries < 3; tries++) {
		pmd_t entry = READ_ONCE(*pmd);

		if (!pmd_present(entry))
			break;
		if (pmd_trans_huge(entry)) {
			if (kvmem_scan_huge(s, pmd, addr, end))
				return;
		} else if (kvmem_pte_table(s->ctx->mm, pmd, addr, end,
					   kvmem_scan_ptes, s)) {
			return;
		}
	}
	s->arg->absent += (end - addr) >> PAGE_SHIFT;
	kvmem_heat_note(s, addr, end, false);
}

/* Scans on from @addr and returns how far.  REQUIRES: mmap_lock held. */
static unsigned long kvmem_scan_steps(struct kvmem_scan_state *s,
				      unsigned long addr, unsigned long end)
{
	struct mm_struct *mm = s->ctx->mm;
	struct vm_area_struct *vma = find_vma(mm, addr);
	int steps = 0;

	do {
		unsigned long next = pmd_addr_end(addr, end);

		if (!vma || addr < vma->vm_start) {
			if (vma)
				next = min(next, vma->vm_start);
			s->arg->absent += (next - addr) >> PAGE_SHIFT;
			kvmem_heat_note(s, addr, next, false);
		} else {
			bool memory = kvmem_vma_is_memory(vma);

			next = min(next, vma->vm_end);
			if (memory || kvmem_vma_is_own_hugetlb(vma)) {
				s->reclaim = memory;
				kvmem_scan_step(s, addr, next);
			} else {
				s->arg->unsupported += (next - addr) >> PAGE_SHIFT;
				kvmem_heat_note(s, addr, next, false);
			}
		}
		addr = next;
		if (vma && addr >= vma->vm_end)
			vma = find_vma(mm, addr);
	} while (addr < end && ++steps < KVMEM_SCAN_STEPS && !need_resched() &&
		 !mmap_lock_is_contended(mm));
	return addr;
}

static void kvmem_flush_here(void *unused)
{
	__flush_tlb_all();
}

/*
 * An accessed bit is set when a translation is loaded, not when it is used, so
 * entries that are cached must go.  flush_tlb_mm_range() is not exported; this
 * is how it works.  The new generation makes a CPU that has entries of this mm
 * under a PCID not in use flush them before it uses them again; the interrupt
 * covers those that use them now.  Whoever finds its generation behind by more
 * than the flush at hand drops all it has of the mm, so a generation that comes
 * with no flush of its own is one flush more and never one less.
 */
static void kvmem_flush(struct mm_struct *mm)
{
	/* Fully ordered: whoever loads an entry from now on sees bits cleared. */
	atomic64_inc_return(&mm->context.tlb_gen);
	on_each_cpu_mask(mm_cpumask(mm), kvmem_flush_here, NULL, true);
}

/* The writer's side of kvmem_heat_header.seq; ctx->lock makes it the only one. */
static void kvmem_heat_seq(struct kvmem_heat_header *header)
{
	smp_wmb();
	WRITE_ONCE(header->seq, header->seq + 1);
	smp_wmb();
}

long kvmem_scan(struct kvmem_context *ctx, struct kvmem_scan *arg)
{
	struct kvmem_heat_header *header = ctx->heat->header;
	struct kvmem_scan_state s = {
		.ctx = ctx,
		.arg = arg,
		.unit = KVMEM_UNIT_NONE,
	};
	u64 began = ktime_get_ns();
	unsigned long addr, end;
	long rc = 0;

	if (arg->flags & ~(KVMEM_SCAN_DECAY | KVMEM_SCAN_FLUSH))
		return -EINVAL;
	if (!kvmem_context_covers(ctx, arg->start, arg->len, ctx->page_shift))
		return -EINVAL;
	arg->young = 0;
	arg->old = 0;
	arg->absent = 0;
	arg->unsupported = 0;
	arg->huge = 0;

	kvmem_heat_seq(header);
	addr = arg->start;
	end = addr + arg->len;
	while (addr < end) {
		if (fatal_signal_pending(current) ||
		    mmap_read_lock_killable(ctx->mm)) {
			rc = -EINTR;
			break;
		}
		addr = kvmem_scan_steps(&s, addr, end);
		mmap_read_unlock(ctx->mm);
		cond_resched();
	}
	kvmem_heat_commit(&s);
	/*
	 * "old" counts too: a page that an earlier scan cleared without a flush
	 * may be in use by a cached translation.
	 */
	if (!rc && arg->flags & KVMEM_SCAN_FLUSH && arg->young + arg->old)
		kvmem_flush(ctx->mm);
	if (!rc) {
		arg->scans = ctx->scans + 1;
		arg->ns = ktime_get_ns() - began;
		WRITE_ONCE(header->scans, arg->scans);
		WRITE_ONCE(header->scanned_ns, ktime_get_ns());
	}
	kvmem_heat_seq(header);
	if (!rc)
		kvmem_context_scanned(ctx);
	return rc;
}

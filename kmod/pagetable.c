// SPDX-License-Identifier: GPL-2.0
/*
 * Down to a page table, with what the kernel exports.
 *
 * apply_to_existing_page_range() would be the ready-made way, but it warns
 * when it meets a huge PMD, and on shmem one can appear at any time: from 6.6
 * on, collapsing a file's pages clears the PMD of everyone who maps them
 * without taking their mmap_lock, and the next fault puts a huge one there.
 * What follows is the protocol of pte_offset_map_lock(), by which the kernel
 * itself lives with that.
 */
#include <linux/hugetlb.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/shmem_fs.h>
#include <linux/userfaultfd_k.h>

#include "kvmem.h"

pmd_t *kvmem_pmd_lookup(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud) || pud_bad(*pud))
		return NULL;
	return pmd_offset(pud, addr);
}

bool kvmem_pte_table(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
		     unsigned long end, kvmem_pte_fn fn, void *data)
{
	bool done = false;

	while (!done) {
		spinlock_t *ptl;
		pmd_t table;

		/*
		 * A table that is taken out meanwhile is freed after a grace
		 * period, its lock with it.
		 */
		rcu_read_lock();
		table = READ_ONCE(*pmd);
		if (!pmd_present(table) || pmd_trans_huge(table) ||
		    pmd_bad(table)) {
			rcu_read_unlock();
			return false;
		}
		ptl = pte_lockptr(mm, &table);
		spin_lock(ptl);
		/* Whoever takes a table out holds this lock as well. */
		if (pmd_same(table, READ_ONCE(*pmd))) {
			fn(pte_offset_kernel(&table, addr), addr, end, data);
			done = true;
		}
		spin_unlock(ptl);
		rcu_read_unlock();
	}
	return true;
}

bool kvmem_vma_is_memory(struct vm_area_struct *vma)
{
	if (is_vm_hugetlb_page(vma) ||
	    vma->vm_flags & (VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_DONTEXPAND))
		return false;
	return vma_is_anonymous(vma) ||
	       (vma->vm_file && shmem_mapping(vma->vm_file->f_mapping));
}

/*
 * A hugetlb page table shared between processes holds accesses of them all,
 * and can be freed under a lock that is not exported.  It is never shared in
 * private mappings, nor where userfaultfd needs entries of one process alone;
 * neither changes while mmap_lock is held.
 */
bool kvmem_vma_is_own_hugetlb(struct vm_area_struct *vma)
{
	return is_vm_hugetlb_page(vma) &&
	       huge_page_size(hstate_vma(vma)) == PMD_SIZE &&
	       (!(vma->vm_flags & VM_MAYSHARE) ||
		uffd_disable_huge_pmd_share(vma));
}

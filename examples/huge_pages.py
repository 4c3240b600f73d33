"""Pages of 2 MiB from the kernel's pool, for as long as something runs."""

import contextlib
import mmap
from pathlib import Path

PAGE = 2 << 20
MAP_HUGETLB = 0x40000
MADV_POPULATE_WRITE = 23
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
HUGE_PAGES_MORE = Path("/proc/sys/vm/nr_overcommit_hugepages")


@contextlib.contextmanager
def huge_pages(size_bytes: int):
    """kvmem is at its best with 2 MiB pages from the kernel's pool: root lets it have its budget.
    A pool of its own, since pages that go back to the kernel in between are zeroed memory that a
    hypervisor may have taken away meanwhile; what else is asked for may come from the kernel."""
    was = []
    try:
        for setting, pages in ((HUGE_PAGES, size_bytes // PAGE), (HUGE_PAGES_MORE, 256)):
            before = setting.read_text()
            setting.write_text(str(int(before) + pages))
            was.append((setting, before))
        with mmap.mmap(-1, max(1, size_bytes // PAGE) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB) as pool:
            pool.madvise(MADV_POPULATE_WRITE)  # now, not during the run, a hypervisor has to give them
    except OSError:
        pass  # not root, a read-only /proc, too few free huge pages: kvmem runs on what there is
    try:
        yield
    finally:
        for setting, before in was:
            setting.write_text(before)

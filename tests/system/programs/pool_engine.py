"""An engine in Python that keeps its sequences in a KV pool on the host: what forks share is in memory once,
what it may not do is refused, and all is given back.

usage: pool_engine.py LIBRARY MODULE_DIR
"""

import errno
import os
import struct
import sys

os.environ["KVMEM_LIBRARY"] = sys.argv[1]
sys.path.insert(0, sys.argv[2])
import kvmem  # pylint: disable=wrong-import-position

PAGE = 2 << 20


def refused(code, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno == code, (error, errno.errorcode[code])
        return
    raise AssertionError(f"{function.__name__}{arguments} was not refused")


def frame_of(address):
    """Of the page that holds it, as the kernel counts frames; 0: it may not be known."""
    with open("/proc/self/pagemap", "rb") as pages:
        pages.seek(address // 4096 * 8)
        entry, = struct.unpack("=Q", pages.read(8))
    return entry & ((1 << 55) - 1)


def heads(pool, sequence, tokens, seed):
    """Each head of these tokens, and what is to be in it."""
    for layer in range(pool.options.layers):
        for is_value in (False, True):
            view = pool.view(layer, is_value)
            for token in tokens:
                for head in range(pool.options.kv_heads):
                    word = hash((seed, layer, is_value, token, head)) & 0xffffffff
                    pattern = struct.pack("=I", word) * (pool.options.head_dim * pool.options.element_bytes // 4)
                    yield view.head(sequence, token, head), pattern


def fill(pool, sequence, tokens, seed):
    for head, pattern in heads(pool, sequence, tokens, seed):
        head[:] = pattern


def check(pool, sequence, tokens, seed):
    for head, pattern in heads(pool, sequence, tokens, seed):
        assert head == pattern


def crowd():
    """More forks than pages can lie at several addresses: one is refused, nothing is another's, and what is
    closed makes room again."""
    with kvmem.KvPool(layers=32, kv_heads=1, head_dim=16384, element_bytes=4, tokens_max=64, sequences_max=200,
                      layout=kvmem.PER_LAYER, bytes_max=1 << 30) as pool:
        prompt, beams = pool.open_sequence(), []
        pool.extend(prompt, 32)  # a page in each of 64 planes
        fill(pool, prompt, [0, 31], 1)
        try:
            while len(beams) < 198:
                beams.append(pool.fork(prompt, 32))
        except OSError as error:
            assert error.errno == errno.ENOMEM, error
        assert 50 < len(beams) < 198, len(beams)
        other = pool.open_sequence()
        pool.extend(other, 2)
        fill(pool, other, [0, 1], 9)
        for sequence in (prompt, *beams[::16], beams[-1]):
            check(pool, sequence, [0, 31], 1)
        for beam in beams[3:]:
            pool.close_sequence(beam)
        again = pool.fork(prompt, 32)
        for sequence in (prompt, again, *beams[:3]):
            check(pool, sequence, [0, 31], 1)
        check(pool, other, [0, 1], 9)


def main():
    refused(errno.EINVAL, kvmem.KvPool, 0, 1, 1, 2, 16, 1)
    refused(errno.EINVAL, lambda: kvmem.KvPool(1, 1, 1, 9, 16, 1))
    try:
        kvmem.KvPool(1, 1, 64, 2, 16, 1, device=0)
    except OSError as error:
        assert error.errno in (errno.ENODEV, errno.ENOTSUP), error  # no cuInit, or built without it
    # Addresses cost nothing, memory counts.
    huge = {"layers": 32, "kv_heads": 8, "head_dim": 128, "element_bytes": 2, "tokens_max": 8192, "sequences_max": 64}
    refused(errno.EDQUOT, lambda: kvmem.KvPool(**huge))
    with kvmem.KvPool(**huge, bytes_max=16 * PAGE) as pool:
        first, second = pool.open_sequence(), pool.open_sequence()
        pool.extend(first, 12 * 16)
        fill(pool, first, range(0, 12 * 16, 16), 3)
        refused(errno.ENOMEM, pool.extend, second, 5 * 16)
        pool.close_sequence(first)
        pool.extend(second, 16 * 16)
        fill(pool, second, range(0, 16 * 16, 16), 4)
        check(pool, second, range(0, 16 * 16, 16), 4)
    for layout in (kvmem.PACKED, kvmem.PER_LAYER):
        pool = kvmem.KvPool(layers=2, kv_heads=2, head_dim=8192, element_bytes=4, tokens_max=256, sequences_max=4,
                            layout=layout, tag="kv")
        token = 2 * 2 * 2 * 8192 * 4 if layout == kvmem.PACKED else 2 * 8192 * 4
        planes = 1 if layout == kvmem.PACKED else 4
        assert pool.stats()["growth_bytes"] == planes * PAGE
        prompt = pool.open_sequence()
        pool.extend(prompt, 40)
        fill(pool, prompt, range(40), 1)
        assert pool.stats()["bytes"] == planes * -(-40 * token // PAGE) * PAGE
        beams = [pool.fork(prompt, 33) for _ in range(2)]
        full = 33 * token // PAGE
        assert pool.stats()["shared_bytes"] == planes * full * PAGE
        for beam in beams:
            view = pool.view(0)
            check(pool, beam, range(33), 1)
            at = view.address + beam * view.strides[0]
            if full > 0 and os.geteuid() == 0:
                mine = view.address + prompt * view.strides[0]
                view.head(prompt, 0, 0)[0:1] = view.head(prompt, 0, 0)[0:1]  # there, for a moment
                view.head(beam, 0, 0)[0]
                assert frame_of(at) == frame_of(mine), "not the same memory"
        # Each goes on for itself; the prompt is cut back into what they share.
        for n in range(20):
            pool.step(beams)
            for i, beam in enumerate(beams):
                fill(pool, beam, [33 + n], 10 + i)
        pool.truncate(prompt, 7)
        pool.extend(prompt, 50)
        fill(pool, prompt, range(7, 50), 5)
        check(pool, prompt, range(7), 1)
        check(pool, prompt, range(7, 50), 5)
        for i, beam in enumerate(beams):
            check(pool, beam, range(33), 1)
            check(pool, beam, range(33, 53), 10 + i)
        other = pool.open_sequence()
        refused(errno.ENOSPC, pool.open_sequence)
        refused(errno.EINVAL, pool.extend, other, 257)
        refused(errno.EINVAL, pool.truncate, other, 1)
        refused(errno.EINVAL, pool.fork, other, 1)
        refused(errno.EINVAL, pool.close_sequence, 4)
        refused(errno.EINVAL, pool.step, [other, other])
        refused(errno.EINVAL, pool.view, 2)
        pool.pin(other)
        refused(errno.EBUSY, pool.park, other)
        assert not pool.fits(256) and not pool.fits(257)
        pool.close_sequence(prompt)
        refused(errno.EINVAL, pool.close_sequence, prompt)
        assert pool.fits(256) and not pool.fits(256, 2)
        for beam in beams:
            pool.park(beam)
            pool.prefetch(beam)
            check(pool, beam, range(33), 1)
            pool.close_sequence(beam)
        assert pool.stats()["open"] == 1
        pool.close()
    crowd()
    print("ok pool_engine")


if __name__ == "__main__":
    main()

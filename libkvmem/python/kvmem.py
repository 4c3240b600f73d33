"""kvmem from Python: the block cache of kvmem.h, by ctypes. Nothing is compiled.

    import kvmem
    cache = kvmem.BlockCache(identity=(model, layout), block_bytes=2 << 20)
    names = [kvmem.block_name(tokens[: end]) for end in range(16, len(tokens) + 1, 16)]
    with cache.begin(names, input_tokens=len(tokens)) as found:
        for block in found:          # read-only memoryviews of where they lie, no copies
            ...
        for name in names[len(found):]:
            cache.put(name, compute(name))

The library is $KVMEM_LIBRARY, else libkvmem.so where the loader finds it. The daemon is found as kvmem.h
says ($KVMEM_SOCKET). Errors are OSError with the errno of kvmem.h. Any thread may call; calls of one
cache wait for each other, with the interpreter's lock released. A forked child opens its own.
"""

import ctypes
import hashlib
import os

__all__ = ["BlockCache", "Blocks", "block_name", "chained_names"]


class _Name(ctypes.Structure):
    _fields_ = [("word", ctypes.c_uint64 * 2)]


class _Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("identity", ctypes.c_uint64 * 2), ("block_bytes", ctypes.c_size_t)]


class _Request(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("names", ctypes.POINTER(_Name)), ("count", ctypes.c_size_t),
                ("time_ms", ctypes.c_uint64), ("input_tokens", ctypes.c_uint32), ("output_tokens", ctypes.c_uint32),
                ("tail_is_partial", ctypes.c_uint32), ("overlaps", ctypes.c_uint32)]


class _Statistics(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t)] + [(name, ctypes.c_uint64) for name in
                                              ("requests", "asked", "found", "restored", "puts", "refused")]


_SIGNATURES = {
    "kvmem_cache_open": [ctypes.POINTER(_Options), ctypes.POINTER(ctypes.c_void_p)],
    "kvmem_cache_contains": [ctypes.c_void_p, ctypes.POINTER(_Name), ctypes.c_size_t,
                             ctypes.POINTER(ctypes.c_size_t)],
    "kvmem_cache_begin": [ctypes.c_void_p, ctypes.POINTER(_Request), ctypes.POINTER(ctypes.c_void_p),
                          ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_uint64)],
    "kvmem_cache_plan": [ctypes.c_void_p, ctypes.POINTER(_Request), ctypes.POINTER(ctypes.c_void_p),
                         ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
                         ctypes.POINTER(ctypes.c_uint64)],
    "kvmem_cache_wait": [ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p),
                         ctypes.POINTER(ctypes.c_size_t)],
    "kvmem_cache_computed": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint64],
    "kvmem_cache_end": [ctypes.c_void_p, ctypes.c_uint64],
    "kvmem_cache_put": [ctypes.c_void_p, ctypes.POINTER(_Name), ctypes.c_void_p],
    "kvmem_cache_stats": [ctypes.c_void_p, ctypes.POINTER(_Statistics)],
}
_loaded = None


def _library():
    global _loaded  # pylint: disable=global-statement
    if _loaded is None:
        library = ctypes.CDLL(os.environ.get("KVMEM_LIBRARY", "libkvmem.so"))
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        library.kvmem_cache_close.argtypes = [ctypes.c_void_p]
        library.kvmem_cache_close.restype = None
        library.kvmem_strerror.argtypes = [ctypes.c_int]
        library.kvmem_strerror.restype = ctypes.c_char_p
        _loaded = library
    return _loaded


def _call(name, *arguments):
    error = getattr(_library(), name)(*arguments)
    if error != 0:
        raise OSError(-error, f"{name}: {_library().kvmem_strerror(error).decode()}")


def _names(names):
    return (_Name * len(names))(*[_Name((ctypes.c_uint64 * 2)(*name)) for name in names])


def block_name(data, before=(0, 0)):
    """The 128-bit name, two integers, of a block whose tokens are `data` (bytes, or anything with a buffer)
    and which follows the block `before`."""
    chain = hashlib.blake2b(digest_size=16)
    chain.update(before[0].to_bytes(8, "little") + before[1].to_bytes(8, "little"))
    chain.update(data)
    digest = chain.digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def chained_names(tokens, tokens_per_block):
    """Names of the blocks of a prompt (a sequence of integers below 2**64), the last one perhaps not full."""
    names, before = [], (0, 0)
    for begin in range(0, len(tokens), tokens_per_block):
        data = b"".join(int(token).to_bytes(8, "little") for token in tokens[begin:begin + tokens_per_block])
        before = block_name(data, before)
        names.append(before)
    return names


class Blocks:
    """The leading blocks of a prompt that were found: a sequence of read-only memoryviews, until end(), or
    the end of a `with`. Views must not be used after that. `addresses` are where they lie.

    Of plan(): a block that is not in DRAM is None. Those before `compute_end` are to be computed, those from
    it on are there after wait(), but for any that are None even then."""

    def __init__(self, cache, addresses, number, compute_end=0):
        self._cache, self.addresses, self._number, self.compute_end = cache, addresses, number, compute_end

    def __len__(self):
        return len(self.addresses)

    def __getitem__(self, i):
        if self._number is None:
            raise ValueError("the request has ended")
        if self.addresses[i] is None:
            return None
        block = (ctypes.c_char * self._cache.block_bytes).from_address(self.addresses[i])
        return memoryview(block).cast("B").toreadonly()

    def wait(self):
        """What the plan said is being read is there now."""
        addresses = (ctypes.c_void_p * len(self.addresses))()
        found = ctypes.c_size_t()
        if self._number:
            _call("kvmem_cache_wait", self._cache.handle, self._number, addresses, ctypes.byref(found))
            self.addresses = list(addresses[:found.value])
            if not self.addresses:
                self._number = 0
        return self

    def end(self):
        if self._number is not None:
            number, self._number = self._number, None
            _call("kvmem_cache_end", self._cache.handle, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class BlockCache:
    """A connection to the daemon's block cache. `identity`: two integers below 2**64 that stand for the
    model, its revision, layout and share of a rank; `block_bytes`: of every block."""

    def __init__(self, identity, block_bytes):
        self.block_bytes = block_bytes
        self.handle = ctypes.c_void_p()
        options = _Options(ctypes.sizeof(_Options), (ctypes.c_uint64 * 2)(*identity), block_bytes)
        _call("kvmem_cache_open", ctypes.byref(options), ctypes.byref(self.handle))

    def contains(self, names):
        """How many blocks of a prompt, from its start, can be had."""
        found = ctypes.c_size_t()
        _call("kvmem_cache_contains", self.handle, _names(names), len(names), ctypes.byref(found))
        return found.value

    def begin(self, names, input_tokens=0, output_tokens=0, tail_is_partial=False, time_ms=0):
        """A prompt is served: the Blocks of its start that the cache has. `names` are those of all its
        blocks, also of those to be computed."""
        addresses, found, number, request = self._request(names, input_tokens, output_tokens, tail_is_partial,
                                                          time_ms, False)
        _call("kvmem_cache_begin", self.handle, ctypes.byref(request), addresses, ctypes.byref(found),
              ctypes.byref(number))
        return Blocks(self, list(addresses[:found.value]), number.value)

    def plan(self, names, input_tokens=0, output_tokens=0, tail_is_partial=False, time_ms=0, overlaps=False):
        """As begin(), at once: the cache chooses which stored blocks are read, and which ones the engine had
        better compute again (see computed()). `overlaps`: it computes while others are read."""
        addresses, found, number, request = self._request(names, input_tokens, output_tokens, tail_is_partial,
                                                          time_ms, overlaps)
        compute_end = ctypes.c_size_t()
        _call("kvmem_cache_plan", self.handle, ctypes.byref(request), addresses, ctypes.byref(found),
              ctypes.byref(compute_end), ctypes.byref(number))
        return Blocks(self, list(addresses[:found.value]), number.value, compute_end.value)

    def computed(self, first, count, microseconds):
        """Computing blocks [first, first + count) of a prompt took so long: what plan() goes by."""
        _call("kvmem_cache_computed", self.handle, first, count, microseconds)

    @staticmethod
    def _request(names, input_tokens, output_tokens, tail_is_partial, time_ms, overlaps):
        request = _Request(ctypes.sizeof(_Request), _names(names), len(names), time_ms, input_tokens, output_tokens,
                           int(tail_is_partial), int(overlaps))
        return (ctypes.c_void_p * len(names))(), ctypes.c_size_t(), ctypes.c_uint64(), request

    def put(self, name, data):
        """Copies a computed block of a prompt that has begun. False: the cache does not keep it."""
        view = memoryview(data).cast("B")
        if view.nbytes != self.block_bytes:
            raise ValueError(f"a block has {self.block_bytes} bytes, not {view.nbytes}")
        if view.readonly:  # bytes, say: ctypes wants to be sure that nobody writes
            block = ctypes.cast(ctypes.c_char_p(bytes(view) if not isinstance(data, bytes) else data), ctypes.c_void_p)
        else:
            block = ctypes.addressof(ctypes.c_char.from_buffer(view))
        try:
            _call("kvmem_cache_put", self.handle, _names([name]), block)
        except OSError as error:
            if error.errno in (28, 12):  # ENOSPC, ENOMEM
                return False
            raise
        return True

    def stats(self):
        """What this connection has done: requests; blocks asked, found, restored (of those found, read from
        the store), puts, refused."""
        got = _Statistics(ctypes.sizeof(_Statistics))
        _call("kvmem_cache_stats", self.handle, ctypes.byref(got))
        return {name: getattr(got, name) for name, _ in _Statistics._fields_[1:]}  # pylint: disable=protected-access

    def close(self):
        if self.handle:
            _library().kvmem_cache_close(self.handle)
            self.handle = ctypes.c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

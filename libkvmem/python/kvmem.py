"""kvmem from Python: the block cache and the KV pools of kvmem.h, by ctypes. Nothing is compiled.

    import kvmem
    cache = kvmem.BlockCache(identity=(model, layout), block_bytes=2 << 20)
    names = [kvmem.block_name(tokens[: end]) for end in range(16, len(tokens) + 1, 16)]
    with cache.begin(names, input_tokens=len(tokens)) as found:
        for block in found:          # read-only memoryviews of where they lie, no copies
            ...
        for name in names[len(found):]:
            cache.put(name, compute(name))

    pool = kvmem.KvPool(layers=32, kv_heads=8, head_dim=128, element_bytes=2, tokens_max=8192, sequences_max=64)
    keys = torch.as_tensor(pool.view(layer=0), device="cuda").view(torch.bfloat16)    # device=0
    keys = numpy.asarray(pool.view(layer=0)).view(numpy.float16)   # on the host: [sequence, token, head, element]
    prompt = pool.open_sequence()
    pool.extend(prompt, 1000)        # write keys[prompt, :1000], ...
    beam = pool.fork(prompt, 1000)   # shares full pages
    pool.step([prompt, beam])        # before each step of the engine: a token more each

The library is $KVMEM_LIBRARY, else libkvmem.so where the loader finds it. The daemon is found as kvmem.h
says ($KVMEM_SOCKET). Errors are OSError with the errno of kvmem.h. Any thread may call; calls of one
cache wait for each other, with the interpreter's lock released. A forked child opens its own cache, and has
no pool of its parent's.
"""

import ctypes
import hashlib
import os

__all__ = ["BlockCache", "Blocks", "KvPool", "KvView", "ON_HOST", "PACKED", "PER_LAYER", "block_name", "chained_names"]

ON_HOST = -1
PER_LAYER, PACKED = 0, 1


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


class _PoolOptions(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("layers", ctypes.c_uint32), ("kv_heads", ctypes.c_uint32),
                ("head_dim", ctypes.c_uint32), ("element_bytes", ctypes.c_uint32), ("tokens_max", ctypes.c_uint64),
                ("sequences_max", ctypes.c_uint64), ("layout", ctypes.c_uint32), ("device", ctypes.c_int32),
                ("bytes_max", ctypes.c_uint64), ("tag", ctypes.c_char_p)]


class _View(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t)] + [(name, ctypes.c_uint64) for name in
                                              ("address", "sequence_stride", "token_stride", "head_stride")]


class _PoolStatistics(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t)] + [
        (name, ctypes.c_uint64) for name in
        ("page_bytes", "growth_bytes", "open", "parked", "bytes", "shared_bytes", "spare_bytes", "steps", "grown_pages",
         "late_pages", "late_creates", "reclaimed_pages", "parked_pages", "resumed_pages")]


_SEQUENCE = [ctypes.c_void_p, ctypes.c_uint32]
_SIGNATURES = {
    "kvmem_pool_create": [ctypes.POINTER(_PoolOptions), ctypes.POINTER(ctypes.c_void_p)],
    "kvmem_pool_view": [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.POINTER(_View)],
    "kvmem_pool_step": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint64),
                        ctypes.c_size_t],
    "kvmem_pool_fits": [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64],
    "kvmem_pool_predict": [ctypes.c_void_p, ctypes.c_uint64],
    "kvmem_pool_stats": [ctypes.c_void_p, ctypes.POINTER(_PoolStatistics)],
    "kvmem_seq_open": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)],
    "kvmem_seq_extend": [*_SEQUENCE, ctypes.c_uint64],
    "kvmem_seq_truncate": [*_SEQUENCE, ctypes.c_uint64],
    "kvmem_seq_fork": [*_SEQUENCE, ctypes.c_uint64, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)],
    "kvmem_seq_pin": [*_SEQUENCE, ctypes.c_int],
    **{f"kvmem_seq_{name}": _SEQUENCE for name in ("close", "park", "resume", "prefetch")},
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
        for name in ("kvmem_cache_close", "kvmem_pool_destroy"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = None
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


class KvView:
    """A layer's keys or values: [sequence, token, head, element], elements as integers of their size.
    What numpy.asarray (on the host) or torch.as_tensor (on a GPU) makes of it is the memory itself."""

    def __init__(self, pool, view):
        self.pool, self.address = pool, view.address
        self.strides = (view.sequence_stride, view.token_stride, view.head_stride, pool.options.element_bytes)
        interface = {"shape": pool.shape, "strides": self.strides, "typestr": f"<i{pool.options.element_bytes}",
                     "data": (view.address, False), "version": 3}
        if pool.options.device == ON_HOST:
            self.__array_interface__ = interface
        else:
            self.__cuda_array_interface__ = interface

    def head(self, sequence, token, head):
        """On the host: a writable memoryview of the bytes of one head of a token."""
        if self.pool.options.device != ON_HOST:
            raise ValueError("the processor does not reach a GPU's memory")
        if not self.pool.handle:
            raise ValueError("the pool is closed")
        for index, limit in zip((sequence, token, head), self.pool.shape):
            if not 0 <= index < limit:
                raise IndexError(f"{index} of {limit}")
        at = self.address + sum(i * stride for i, stride in zip((sequence, token, head), self.strides))
        return memoryview((ctypes.c_char * (self.pool.shape[3] * self.strides[3])).from_address(at)).cast("B")


class KvPool:
    """The keys and values of many sequences, as kvmem.h says. `device`: a CUDA device's ordinal, once cuInit has
    been called (its primary context is used), or ON_HOST. Sequences are integers, their index in the views."""

    def __init__(self, layers, kv_heads, head_dim, element_bytes, tokens_max, sequences_max, layout=PACKED,
                 device=ON_HOST, bytes_max=0, tag=None):
        self.options = _PoolOptions(ctypes.sizeof(_PoolOptions), layers, kv_heads, head_dim, element_bytes, tokens_max,
                                    sequences_max, layout, device, bytes_max, tag.encode() if tag else None)
        self.shape = (sequences_max, tokens_max, kv_heads, head_dim)
        self.handle = ctypes.c_void_p()
        _call("kvmem_pool_create", ctypes.byref(self.options), ctypes.byref(self.handle))

    def view(self, layer, is_value=False):
        """A layer's keys, or values. It must not be used after close()."""
        view = _View(ctypes.sizeof(_View))
        _call("kvmem_pool_view", self.handle, layer, int(is_value), ctypes.byref(view))
        return KvView(self, view)

    def open_sequence(self):
        """A new sequence, of no tokens."""
        sequence = ctypes.c_uint32()
        _call("kvmem_seq_open", self.handle, ctypes.byref(sequence))
        return sequence.value

    def extend(self, sequence, tokens):
        """It has `tokens` tokens in all from now on, no fewer than before."""
        _call("kvmem_seq_extend", self.handle, sequence, tokens)

    def truncate(self, sequence, tokens):
        """It has its first `tokens` tokens from now on."""
        _call("kvmem_seq_truncate", self.handle, sequence, tokens)

    def fork(self, sequence, tokens, stream=None):
        """A new sequence of the first `tokens` of another. `stream`: a CUDA stream's address, in whose order the
        last page is copied (torch.cuda.current_stream().cuda_stream)."""
        child = ctypes.c_uint32()
        _call("kvmem_seq_fork", self.handle, sequence, tokens, stream, ctypes.byref(child))
        return child.value

    def close_sequence(self, sequence):
        """Ends a sequence: its index and its pages are used again."""
        _call("kvmem_seq_close", self.handle, sequence)

    def step(self, sequences, tokens=None):
        """Before a step of the engine: what it touches, of `tokens` tokens each after it; None: one more each."""
        count = len(sequences)
        if tokens is not None and len(tokens) != count:
            raise ValueError(f"{len(tokens)} lengths of {count} sequences")
        _call("kvmem_pool_step", self.handle, (ctypes.c_uint32 * count)(*sequences),
              None if tokens is None else (ctypes.c_uint64 * count)(*tokens), count)

    def park(self, sequence):
        """Its memory may go to slower places until it is named again."""
        _call("kvmem_seq_park", self.handle, sequence)

    def resume(self, sequence):
        """Brings a parked sequence back before it returns (on the host: begins to)."""
        _call("kvmem_seq_resume", self.handle, sequence)

    def prefetch(self, sequence):
        """Brings a parked sequence back in the background."""
        _call("kvmem_seq_prefetch", self.handle, sequence)

    def pin(self, sequence, is_pinned=True):
        """A pinned sequence is not parked."""
        _call("kvmem_seq_pin", self.handle, sequence, int(is_pinned))

    def fits(self, tokens, count=1):
        """Whether `count` more sequences of `tokens` each would find room now."""
        answer = _library().kvmem_pool_fits(self.handle, tokens, count)
        if answer < 0:
            raise OSError(-answer, f"kvmem_pool_fits: {_library().kvmem_strerror(answer).decode()}")
        return answer == 1

    def predict(self, tokens):
        """So many tokens will be added soon, to any sequences."""
        _call("kvmem_pool_predict", self.handle, tokens)

    def stats(self):
        """As struct kvmem_pool_statistics."""
        got = _PoolStatistics(ctypes.sizeof(_PoolStatistics))
        _call("kvmem_pool_stats", self.handle, ctypes.byref(got))
        return {name: getattr(got, name) for name, _ in _PoolStatistics._fields_[1:]}  # pylint: disable=protected-access

    def close(self):
        """Its memory goes, and with it what views show."""
        if self.handle:
            _library().kvmem_pool_destroy(self.handle)
            self.handle = ctypes.c_void_p()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

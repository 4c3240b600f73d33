"""A Python engine: large bytearrays, multiprocessing by fork, subprocesses, closed descriptors.

usage: python_engine.py [SEED]
"""
import gc
import hashlib
import multiprocessing
import os
import random
import subprocess
import sys

SIZE = 40 << 20


def digest(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def child(data, wanted, queue):
    same = digest(data) == wanted
    data[1 << 20 : 2 << 20] = bytes(1 << 20)
    own = bytearray(os.urandom(1 << 20) * 36)
    queue.put((same, data[(1 << 20) + 5] == 0, len(own)))


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print("seed", seed, flush=True)
    generator = random.Random(seed)
    blocks = [bytearray(generator.randbytes(1 << 20) * 40) for _ in range(3)]
    wanted = [digest(b) for b in blocks]

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    for block, want in zip(blocks, wanted):
        process = context.Process(target=child, args=(block, want, queue))
        process.start()
        assert queue.get(timeout=120) == (True, True, 36 << 20)
        process.join(120)
        assert process.exitcode == 0, process.exitcode
    assert [digest(b) for b in blocks] == wanted, "a child's writes reached its parent"
    print("ok multiprocessing by fork", flush=True)

    with context.Pool(3) as pool:
        assert pool.map(digest, [b[: 1 << 20] for b in blocks]) == [digest(b[: 1 << 20]) for b in blocks]
    print("ok a pool", flush=True)

    for _ in range(3):
        subprocess.run([sys.executable, "-c", "x = bytearray(40 << 20); x[5] = 1"], check=True, close_fds=True)
    assert [digest(b) for b in blocks] == wanted
    print("ok subprocesses", flush=True)

    del queue
    gc.collect()
    os.closerange(3, 4096)  # as a daemon does
    more = bytearray(generator.randbytes(1 << 20) * 44)
    want = digest(more)
    assert [digest(b) for b in blocks] == wanted
    del blocks[1]
    assert digest(more) == want
    read_end, write_end = os.pipe()
    os.write(write_end, b"own")
    assert os.read(read_end, 10) == b"own", "kvmem wrote into the engine's pipe"
    if os.fork() == 0:
        os._exit(0 if digest(more) == want else 1)
    assert os.wait()[1] == 0
    print("ok after all descriptors were closed", flush=True)
    os._exit(0)  # what multiprocessing would tidy up at exit was closed above


if __name__ == "__main__":
    main()

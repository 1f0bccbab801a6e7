# SPDX-License-Identifier: Apache-2.0
"""A connection of frames made by hand, and what the server says to them."""
import socket
import struct
import time

from hpack import Decoder, Encoder

from h2frames import ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST, SETTINGS, frame, request, settings
from harness import PATIENCE


class Raw:
    """A connection; `greet` sends preface and settings."""

    def __init__(self, port, greet=True, pairs=()):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.buffer = b""
        self.closed = False
        self.headers = {}   # stream: [(name, value)], trailers behind
        self.body = {}      # stream: bytes
        self.ended = set()
        self.resets = {}    # stream: error
        self.goaway = None  # (last stream, error, debug)
        self.pongs, self.acks = [], 0
        self.server_settings = {}
        if greet:
            self.send(PREFACE + settings(*pairs))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False: the server has closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def take(self, kind, flags, stream, payload):
        if kind == HEADERS:
            self.headers.setdefault(stream, []).extend(self.decoder.decode(payload))
        elif kind == DATA:
            self.body[stream] = self.body.get(stream, b"") + payload
        elif kind == RST:
            self.resets[stream] = struct.unpack(">I", payload)[0]
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)
        elif kind == SETTINGS and flags & ACK:
            self.acks += 1
        elif kind == SETTINGS:
            self.server_settings.update(struct.iter_unpack(">HI", payload))
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == GOAWAY:
            self.goaway = (*struct.unpack(">II", payload[:8]), payload[8:])
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def read_until(self, done, patience=PATIENCE):
        """Reads until done() or the end of the connection; whether done() came true."""
        until = time.monotonic() + patience
        while not done():
            while len(self.buffer) >= 9:
                size = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
                payload, self.buffer = self.buffer[9:9 + size], self.buffer[9 + size:]
                self.take(kind, flags, stream, payload)
                if done():
                    return True
            if self.closed or time.monotonic() > until:
                return False
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                return False
            except OSError:
                data = b""
            self.closed = not data
            self.buffer += data
        return True

    def field(self, stream, name):
        return dict(self.headers.get(stream, [])).get(name)

    def finished(self, stream, patience=PATIENCE):
        """Waits for the end of a stream, however it comes."""
        return self.read_until(lambda: stream in self.ended or stream in self.resets, patience)

    def works(self, stream):
        """Does the connection still answer?"""
        self.send(request(stream))
        return self.finished(stream) and self.field(stream, ":status") == "200"

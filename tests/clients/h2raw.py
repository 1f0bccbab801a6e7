# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 as bytes: frames made by hand, right or wrong, and what the server says to them."""
import socket
import struct
import time

from hpack import Decoder, Encoder

from harness import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, HAS_PRIORITY = 0x4, 0x8, 0x20
(NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR,
 REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM) = range(12)
(HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST) = range(1, 7)


def frame(kind, flags, stream, payload=b"", length=None):
    """`length` lies about the payload's."""
    count = len(payload) if length is None else length
    return struct.pack(">I", count)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window(stream, increment):
    return frame(WINDOW, 0, stream, struct.pack(">I", increment))


def reset(stream, error=CANCEL):
    return frame(RST, 0, stream, struct.pack(">I", error))


def message(data=b"", flag=0, length=None):
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def literal(name, value):
    """A field that no table keeps, whatever is in it."""
    name, value = (x.encode("latin-1") if isinstance(x, str) else x for x in (name, value))
    assert len(name) < 127 and len(value) < 127
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


GET = [(":method", "GET"), (":scheme", "http"), (":path", "/livez"), (":authority", "localhost")]


def call(path="/kinora.v1.Kinora/Models", *more, drop=()):
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
              ("content-type", "application/grpc"), ("te", "trailers"), *more]
    return [f for f in fields if f[0] not in drop]


def block(fields):
    return b"".join(literal(name, value) for name, value in fields)


def request(stream, fields=None, end=True, end_headers=True):
    return frame(HEADERS, (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0), stream,
                 block(GET if fields is None else fields))


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

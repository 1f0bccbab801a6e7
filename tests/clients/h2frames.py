# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames made by hand (RFC 9113), right or wrong; the standard library alone."""
import struct

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

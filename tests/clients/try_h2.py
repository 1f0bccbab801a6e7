# SPDX-License-Identifier: Apache-2.0
"""What the gRPC front says to HTTP/2 that is right, wrong or abusive: a table of cases, one test each.

A case is bytes to be sent after a good beginning (preface and empty SETTINGS) and what must come of them:

    ok            the connection answers a request on stream 101 afterwards
    goaway(...)   the server ends the connection with one of these errors
    rst(...)      stream 1 is reset with one of these errors, and the connection answers afterwards
    status(...)   stream 1 gets this HTTP status
    grpc(...)     stream 1 gets this gRPC status, and the connection answers afterwards

Numbers in names are sections of RFC 9113 and RFC 7541.
"""
import struct

from h2frames import (ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM,
                      ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GET, GOAWAY, HAS_PRIORITY,
                      HEADER_TABLE_SIZE, HEADERS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, NO_ERROR,
                      PADDED, PING, PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH, REFUSED_STREAM, RST, SETTINGS,
                      STREAM_CLOSED, WINDOW, block, call, frame, literal, message, request, reset, settings, window)
from h2raw import Raw
from harness import ServerCase

cases = {}


def case(name, sent, expected):
    assert name not in cases, name
    cases[name] = (sent, expected)


def goaway(*errors):
    return lambda test, c: test.goes_away(c, errors)


def rst(*errors):
    return lambda test, c: test.is_reset(c, errors)


def status(code):
    return lambda test, c: test.has_status(c, code)


def grpc(code):
    return lambda test, c: test.has_grpc(c, code)


def ok(test, c):
    test.assertTrue(c.works(101), (c.goaway, c.resets))


def rejected(test, c):
    """A stream error or a connection error, as RFC 9113 5.4.1 leaves open."""
    c.read_until(lambda: c.goaway is not None or 1 in c.resets)
    test.assertTrue((c.goaway and c.goaway[1]) or c.resets.get(1), (c.goaway, c.resets))


def calm(test, c):
    test.goes_away(c, (ENHANCE_YOUR_CALM,))


# ---- 4.1, 4.2: frames ----

for kind in (10, 11, 42, 127, 255):
    case(f"4_1 unknown type {kind} is ignored", frame(kind, 0xFF, 0, b"x" * 8) + frame(kind, 0, 1, b""), ok)
for kind, flags in ((PING, 0xFE), (WINDOW, 0xFF), (PRIORITY, 0xFF)):
    payload = {PING: b"12345678", WINDOW: struct.pack(">I", 1), PRIORITY: struct.pack(">IB", 0, 1)}[kind]
    case(f"4_1 undefined flags on type {kind} are ignored",
         frame(kind, flags, 1 if kind == PRIORITY else 0, payload), ok)
case("4_1 the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"), ok)
case("4_2 DATA of the most bytes", request(1, call(), end=False) +
     frame(DATA, END_STREAM, 1, message(b"x" * (16384 - 5))), grpc(8))
for kind in (DATA, HEADERS, SETTINGS, PING, 99):
    case(f"4_2 type {kind} beyond the frame size", request(1, call(), end=False) +
         frame(kind, 0, 1 if kind < 2 else 0, b"x" * 16385), goaway(FRAME_SIZE_ERROR))
for length in (0, 1, 7, 9, 16):
    case(f"6_7 PING of {length} bytes", frame(PING, 0, 0, b"x" * length), goaway(FRAME_SIZE_ERROR))
for length in (0, 3, 5):
    case(f"6_4 RST_STREAM of {length} bytes", request(1, call(), end=False) + frame(RST, 0, 1, b"x" * length),
         goaway(FRAME_SIZE_ERROR))
    case(f"6_9 WINDOW_UPDATE of {length} bytes", frame(WINDOW, 0, 0, b"x" * length), goaway(FRAME_SIZE_ERROR))
for length in (1, 5, 7, 13):
    case(f"6_5 SETTINGS of {length} bytes", frame(SETTINGS, 0, 0, bytes(length)), goaway(FRAME_SIZE_ERROR))
for length in (1, 6):
    case(f"6_5 SETTINGS ACK of {length} bytes", frame(SETTINGS, ACK, 0, bytes(length)), goaway(FRAME_SIZE_ERROR))
for length in (0, 4, 7):
    case(f"6_8 GOAWAY of {length} bytes", frame(GOAWAY, 0, 0, bytes(length)), goaway(FRAME_SIZE_ERROR))
for length in (0, 4, 6):
    case(f"6_3 PRIORITY of {length} bytes", request(1, call(), end=False) + frame(PRIORITY, 0, 1, bytes(length)),
         rejected)

# ---- 5.1: streams and their states ----

for kind, payload in ((DATA, b"x"), (HEADERS, block(GET)), (RST, bytes(4)), (CONTINUATION, b""),
                      (PRIORITY, struct.pack(">IB", 0, 1)), (PUSH, bytes(4))):
    case(f"6 type {kind} on stream 0", frame(kind, END_HEADERS, 0, payload), goaway(PROTOCOL_ERROR))
for kind, payload in ((SETTINGS, b""), (PING, bytes(8)), (GOAWAY, bytes(8))):
    case(f"6 type {kind} on stream 1", request(1, call(), end=False) + frame(kind, 0, 1, payload),
         goaway(PROTOCOL_ERROR))
case("5_1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), goaway(PROTOCOL_ERROR, STREAM_CLOSED))
case("5_1 RST_STREAM on an idle stream", reset(1), goaway(PROTOCOL_ERROR))
case("5_1 WINDOW_UPDATE on an idle stream", window(1, 1), goaway(PROTOCOL_ERROR))
case("5_1 CONTINUATION on an idle stream", frame(CONTINUATION, END_HEADERS, 1, block(GET)), goaway(PROTOCOL_ERROR))
case("5_1 PRIORITY on an idle stream", frame(PRIORITY, 0, 5, struct.pack(">IB", 3, 7)), ok)
case("5_1_1 an even stream", request(2), goaway(PROTOCOL_ERROR))
case("5_1_1 a lower stream", request(5) + request(3), lambda test, c: test.is_not_served(c, 3))
case("5_1_1 the highest stream but one", request(0x7FFFFFFD),
     lambda test, c: test.assertTrue(c.finished(0x7FFFFFFD) and c.field(0x7FFFFFFD, ":status") == "200"))
case("8_4 PUSH_PROMISE from a client", request(1, call(), end=False) +
     frame(PUSH, END_HEADERS, 1, bytes(4) + block(GET)),
     goaway(PROTOCOL_ERROR))
for kind, payload in ((DATA, b"x"), (HEADERS, block(GET)), (CONTINUATION, b"")):
    case(f"5_1 type {kind} after END_STREAM", request(1, call()) + frame(kind, END_HEADERS | END_STREAM, 1, payload),
         lambda test, c: test.is_refused_late(c))
for kind, payload in ((WINDOW, struct.pack(">I", 1)), (RST, bytes(4)), (PRIORITY, struct.pack(">IB", 0, 1))):
    case(f"5_1 type {kind} after END_STREAM is allowed", request(1, call()) + frame(kind, 0, 1, payload), ok)
case("5_1 DATA after RST_STREAM", request(1, call(), end=False) + reset(1) + frame(DATA, 0, 1, b"x" * 100),
     lambda test, c: test.is_refused_late(c))
case("8_1 trailers that do not end the stream", request(1, call(), end=False) +
     frame(HEADERS, END_HEADERS, 1, literal("x", "y")), rejected)
case("8_1 trailers", request(1, call(), end=False) + frame(DATA, 0, 1, message()) +
     frame(HEADERS, END_HEADERS | END_STREAM, 1, literal("x", "y")), grpc(0))
case("8_1 a pseudo-header in trailers", request(1, call(), end=False) +
     frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(":path", "/")), rejected)

# ---- 6.1, 6.2: padding, and header sections in pieces ----

for pad in (0, 1, 100, 255):
    case(f"6_1 DATA with {pad} bytes of padding", request(1, call(), end=False) +
         frame(DATA, END_STREAM | PADDED, 1, bytes([pad]) + message() + bytes(pad)), grpc(0))
    case(f"6_2 HEADERS with {pad} bytes of padding", frame(
        HEADERS, END_STREAM | END_HEADERS | PADDED, 1, bytes([pad]) + block(GET) + bytes(pad)), status("200"))
for pad, rest in ((1, 0), (255, 10), (5, 4)):
    case(f"6_1 DATA with {pad} of padding in {rest} bytes", request(1, call(), end=False) +
         frame(DATA, END_STREAM | PADDED, 1, bytes([pad]) + bytes(rest)), goaway(PROTOCOL_ERROR))
    case(f"6_2 HEADERS with {pad} of padding in {rest} bytes",
         frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, bytes([pad]) + bytes(rest)), goaway(PROTOCOL_ERROR))
case("6_2 HEADERS with a priority", frame(HEADERS, END_STREAM | END_HEADERS | HAS_PRIORITY, 1,
                                          struct.pack(">IB", 0, 15) + block(GET)), status("200"))
for pieces in (2, 3, 4, 5):
    parts = block(GET)
    cut = [parts[i * len(parts) // pieces:(i + 1) * len(parts) // pieces] for i in range(pieces)]
    case(f"6_10 a header section in {pieces} frames", frame(HEADERS, END_STREAM, 1, cut[0]) + b"".join(
        frame(CONTINUATION, END_HEADERS if i == pieces - 1 else 0, 1, cut[i]) for i in range(1, pieces)), status("200"))
for kind, stream, payload in ((DATA, 1, b""), (HEADERS, 1, b""), (HEADERS, 3, block(GET)), (PRIORITY, 1, bytes(5)),
                              (RST, 1, bytes(4)), (SETTINGS, 0, b""), (PING, 0, bytes(8)), (GOAWAY, 0, bytes(8)),
                              (WINDOW, 0, bytes(4)), (CONTINUATION, 3, b""), (42, 0, b"")):
    case(f"6_10 type {kind} on {stream} inside a header section", request(1, end_headers=False) +
         frame(kind, 0, stream, payload), goaway(PROTOCOL_ERROR))

# ---- 6.5: settings ----

for key, value in ((HEADER_TABLE_SIZE, 0), (HEADER_TABLE_SIZE, 4096), (HEADER_TABLE_SIZE, 0xFFFFFFFF), (ENABLE_PUSH, 0),
                   (MAX_STREAMS, 0), (MAX_STREAMS, 1), (INITIAL_WINDOW, 0x7FFFFFFF), (MAX_FRAME, 16384),
                   (MAX_FRAME, 16777215), (MAX_HEADER_LIST, 8192), (0xFE03, 1), (0x0A0A, 7), (0, 0)):
    case(f"6_5 setting {key} = {value}", settings((key, value)), ok)
for key, value, error in ((ENABLE_PUSH, 2, PROTOCOL_ERROR), (INITIAL_WINDOW, 1 << 31, FLOW_CONTROL_ERROR),
                          (INITIAL_WINDOW, 0xFFFFFFFF, FLOW_CONTROL_ERROR), (MAX_FRAME, 16383, PROTOCOL_ERROR),
                          (MAX_FRAME, 0, PROTOCOL_ERROR), (MAX_FRAME, 1 << 24, PROTOCOL_ERROR), (9, 2, PROTOCOL_ERROR)):
    case(f"6_5 setting {key} = {value} is refused", settings((key, value)), goaway(error))
case("6_5 settings are acknowledged", settings() + settings((INITIAL_WINDOW, 1)),
     lambda test, c: test.assertTrue(c.read_until(lambda: c.acks == 3)))
case("6_5 an acknowledgement out of the blue", frame(SETTINGS, ACK, 0), ok)
case("6_5 fifty settings in one frame", settings(*[(0x1000 + i, i) for i in range(50)]), calm)

# ---- 6.7, 6.8: ping, goaway ----

for payload in (b"12345678", bytes(8), b"\xff" * 8):
    case(f"6_7 PING {payload.hex()}", frame(PING, 0, 0, payload),
         lambda test, c, payload=payload: test.assertTrue(c.read_until(lambda: c.pongs == [payload])))
case("6_7 PING ACK out of the blue", frame(PING, ACK, 0, b"12345678"),
     lambda test, c: (ok(test, c), test.assertEqual(c.pongs, [])))
case("6_8 a client's GOAWAY lets its calls end", request(1, call(), end=False) + frame(GOAWAY, 0, 0, bytes(8)) +
     frame(DATA, END_STREAM, 1, message()), lambda test, c: test.has_grpc(c, 0, False))

# ---- 6.9: flow control ----

case("6_9 an increment of 0 on the connection", window(0, 0), goaway(PROTOCOL_ERROR))
case("6_9 an increment of 0 on a stream", request(1, call(), end=False) + window(1, 0),
     rejected)
case("6_9_1 the connection's window beyond its end", window(0, 0x7FFFFFFF), goaway(FLOW_CONTROL_ERROR))
case("6_9_1 a stream's window beyond its end", request(1, call(), end=False) + window(1, 0x7FFFFFFF),
     rst(FLOW_CONTROL_ERROR))
case("6_9_2 a stream's window beyond its end by a setting", request(1, call(), end=False) +
     window(1, 0x7FFFFFFF - 65535) + settings((INITIAL_WINDOW, 65536)), rejected)
for size in (0, 1, 7, 14):
    case(f"6_9 a window of {size}", settings((INITIAL_WINDOW, size)) + request(1),
         lambda test, c, size=size: test.drips(c, size))
case("6_9_2 a window that becomes negative", request(1) + settings((INITIAL_WINDOW, 0)) + request(3),
     lambda test, c: test.stays_shut(c, 3))
case("6_9 more than the connection's window is not accepted", request(1, call(), end=False) + b"".join(
    frame(DATA, 0, 1, bytes(16384)) for _ in range(80)), lambda test, c: test.ends_somehow(c))

# ---- RFC 7541: header compression ----

for name, bad in (("2_3_3 index 0", b"\x80"), ("2_3_3 an index beyond the table", b"\xbe"),
                  ("2_3_3 a far index", b"\xff\xff\xff\xff\x0f"), ("5_1 an endless integer", b"\xff" + b"\xff" * 12),
                  ("5_2 a name cut short", b"\x00\x05ab"), ("5_2 a value cut short", b"\x00\x01a\x05b"),
                  ("5_2 a value's length beyond all", b"\x00\x01a\x7f\xff\xff\xff\x7f"),
                  ("5_2 padding that is not ones", b"\x00\x01a\x81\x00"),
                  ("5_2 padding of eight bits", b"\x00\x01a\x82\x1f\xff"),
                  ("5_2 the end-of-string symbol", b"\x00\x01a\x84\xff\xff\xff\xff"),
                  ("6_3 a table larger than allowed", b"\x3f\xe2\x1f"),
                  ("6_2_1 a name from beyond the table", b"\x7f\x00\x01a")):
    case("RFC7541 " + name, frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET) + bad if "6_3" not in name else bad +
                                  block(GET)), goaway(COMPRESSION_ERROR))
case("RFC7541 4_2 a table size behind a field", frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET) + b"\x20"),
     goaway(COMPRESSION_ERROR))
case("RFC7541 6_3 a table of nothing", frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x20" + block(GET)), status("200"))
case("RFC7541 2_3 static entries",
     frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x86\x04\x06/livez\x41\x09localhost"),
     status("200"))

# ---- 8.1 to 8.3: requests ----

for name, fields in (
        ("an upper-case name", GET + [("X-Upper", "a")]), ("an empty name", GET + [("", "a")]),
        ("a name with a space", GET + [("a b", "c")]), ("a name with a colon", GET + [("a:b", "c")]),
        ("a name with a NUL", GET + [("a\0", "c")]), ("a name beyond ASCII", GET + [("\xfc", "c")]),
        ("a value with a NUL", GET + [("a", "b\0c")]), ("a value with a line feed", GET + [("a", "b\nc")]),
        ("a value with a carriage return", GET + [("a", "b\rc")]), ("an unknown pseudo-header", GET + [(":what", "a")]),
        ("a response's pseudo-header", GET + [(":status", "200")]), ("a pseudo-header behind fields",
                                                                     [("a", "b")] + GET),
        ("no method", GET[1:]), ("no scheme", GET[:1] + GET[2:]), ("no path", GET[:2] + GET[3:]),
        ("an empty path", [(":path", "") if f[0] == ":path" else f for f in GET]),
        ("a path that is none", [(":path", "livez") if f[0] == ":path" else f for f in GET]),
        ("two methods", GET + GET[:1]), ("two schemes", GET[1:2] + GET), ("two paths", GET[2:3] + GET),
        ("two authorities", GET[3:] + GET), ("connection", GET + [("connection", "close")]),
        ("keep-alive", GET + [("keep-alive", "1")]), ("proxy-connection", GET + [("proxy-connection", "close")]),
        ("transfer-encoding", GET + [("transfer-encoding", "chunked")]), ("upgrade", GET + [("upgrade", "h2c")]),
        ("te that is not trailers", GET + [("te", "gzip")]), ("te with more", GET + [("te", "trailers, gzip")]),
        ("CONNECT with a path", [(":method", "CONNECT")] + GET[1:]), ("CONNECT without an authority",
                                                                     [(":method", "CONNECT")]),
        ("a length that is none", GET + [("content-length", "x")]), ("two lengths", GET + [("content-length", "0"),
                                                                                           ("content-length", "1")]),
        ("a body's length without a body", GET + [("content-length", "5")]),
        ("a negative length", GET + [("content-length", "-1")])):
    case(f"8 {name}", request(1, fields), rejected)
case("8 less body than promised", request(1, call("/kinora.v1.Kinora/Models", ("content-length", "10")), end=False) +
     frame(DATA, END_STREAM, 1, message()), rejected)
case("8 more body than promised", request(1, call("/kinora.v1.Kinora/Models", ("content-length", "1")), end=False) +
     frame(DATA, END_STREAM, 1, message()), rejected)
for name, fields in (("te trailers", GET + [("te", "trailers")]), ("cookies in crumbs", GET + [("cookie", "a"),
                                                                                            ("cookie", "b")]),
                     ("an empty value", GET + [("a", "")]), ("no authority", GET[:3] + [("host", "localhost")]),
                     ("HEAD", [(":method", "HEAD")] + GET[1:])):
    case(f"8 {name} is allowed", request(1, fields), status("200"))

# ---- gRPC ----

for method, code in (("PUT", "405"), ("DELETE", "405"), ("OPTIONS", "405"), ("PATCH", "405"), ("TRACE", "405")):
    case(f"grpc {method}", request(1, [(":method", method)] + GET[1:]), status(code))
case("grpc a page that is not there", request(1, GET[:2] + [(":path", "/v1/videos"), GET[3]]), status("404"))
for kind in ("application/json", "text/plain", "application/grp", ""):
    case(f"grpc content type {kind!r}", request(1, call(drop=("content-type",)) + [("content-type", kind)], end=False) +
         frame(DATA, END_STREAM, 1, message()), status("415"))
case("grpc no content type", request(1, call(drop=("content-type",))), status("415"))
for kind in ("application/grpc", "application/grpc+flatbuffers", "application/grpc+proto", "application/grpc;x=y"):
    case(f"grpc content type {kind!r} is taken", request(1, call(drop=("content-type",)) + [("content-type", kind)],
                                                         end=False) + frame(DATA, END_STREAM, 1, message()), grpc(0))
for path in ("/", "/kinora.v1.Kinora", "/kinora.v1.Kinora/", "/kinora.v1.Kinora/models", "/kinora.v1.Kinora/Models/",
             "//kinora.v1.Kinora/Models", "/kinora.v1.Kinora/Models?x"):
    case(f"grpc path {path}", request(1, call(path), end=False) + frame(DATA, END_STREAM, 1, message()), grpc(12))
for text in ("5", "S", "5s", "123456789S", "-1S", "5 S", "1.5S", "5SS"):
    case(f"grpc timeout {text!r}", request(1, call("/kinora.v1.Kinora/Models", ("grpc-timeout", text)), end=False) +
         frame(DATA, END_STREAM, 1, message()), grpc(13))
for text in ("99999999H", "5M", "5S", "5000m", "99999999u", "99999999n"):
    case(f"grpc timeout {text!r} is taken", request(1, call("/kinora.v1.Kinora/Models", ("grpc-timeout", text)),
                                                    end=False) + frame(DATA, END_STREAM, 1, message()), grpc(0))
case("grpc a timeout of nothing", request(1, call("/kinora.v1.Kinora/Models", ("grpc-timeout", "0S"))), grpc(4))
for name, body, code in (("no message", b"", 12), ("two messages", message() + message(), 12),
                         ("three messages", 3 * message(), 12), ("half a prefix", b"\0\0", 13),
                         ("half a message", message(b"abc", length=4), 13), ("flag 2", message(b"", 2), 13),
                         ("compressed without encoding", message(b"", 1), 13),
                         ("a length of 4 GiB", message(b"x", length=0xFFFFFFFF), 8),
                         ("one byte too many", message(b"", length=4097), 8), ("garbage", message(b"garbage!"), 3)):
    case(f"grpc {name}", request(1, call(), end=False) + frame(DATA, END_STREAM, 1, body), grpc(code))
case("grpc a message byte by byte", request(1, call(), end=False) + b"".join(
    frame(DATA, 0, 1, message()[i:i + 1]) for i in range(5)) + frame(DATA, END_STREAM, 1), grpc(0))
case("grpc an unknown encoding", request(1, call("/kinora.v1.Kinora/Models", ("grpc-encoding", "br"))), grpc(12))
case("grpc damaged gzip", request(1, call("/kinora.v1.Kinora/Models", ("grpc-encoding", "gzip")), end=False) +
     frame(DATA, END_STREAM, 1, message(b"not gzip", 1)), grpc(13))
case("grpc 92 fields of metadata", request(1, call("/kinora.v1.Kinora/Models", *[(f"x-{i}", "y") for i in range(92)]),
                                           end=False) + frame(DATA, END_STREAM, 1, message()), grpc(0))
case("grpc 95 fields of metadata", request(1, call("/kinora.v1.Kinora/Models", *[(f"x-{i}", "y") for i in range(95)])),
     grpc(8))
case("grpc 17 KiB of metadata", frame(HEADERS, END_STREAM, 1, block(call())) + frame(
    CONTINUATION, 0, 1, b"".join(literal(f"x-{i}", "y" * 120) for i in range(80))) + frame(
    CONTINUATION, END_HEADERS, 1, b"".join(literal(f"z-{i}", "y" * 120) for i in range(40))), grpc(8))

# ---- abuse: budgets of h2.h ----

pairs_of = range(1, 4000, 2)
case("abuse CONTINUATION flood", request(1, end_headers=False) + 200 * frame(CONTINUATION, 0, 1), calm)
case("abuse six frames of headers", request(1, end_headers=False) +
     5 * frame(CONTINUATION, 0, 1, literal("a", "b")), calm)
case("abuse rapid reset", b"".join(request(i, call(), end=False) + reset(i) for i in pairs_of), calm)
case("abuse rapid reset of probes", b"".join(request(i) + reset(i) for i in pairs_of), calm)
case("abuse resets that the server is made to send", b"".join(
    request(i, call(), end=False) + window(i, 0x7FFFFFFF) for i in pairs_of), calm)
case("abuse streams with bad fields", b"".join(request(i, GET + [("te", "gzip")]) for i in pairs_of), calm)
case("abuse PING flood", 2000 * frame(PING, 0, 0, bytes(8)), calm)
case("abuse pings without traffic", 5 * frame(PING, 0, 0, bytes(8)), lambda test, c: test.hears(c, b"too_many_pings"))
case("abuse PING ACK flood", 8000 * frame(PING, ACK, 0, bytes(8)), calm)
case("abuse SETTINGS flood", 100 * settings(), calm)
case("abuse SETTINGS ACK flood", 8000 * frame(SETTINGS, ACK, 0), goaway(PROTOCOL_ERROR, ENHANCE_YOUR_CALM))
case("abuse empty DATA flood", request(1, call(), end=False) + 8000 * frame(DATA, 0, 1), calm)
case("abuse padded empty DATA flood", request(1, call(), end=False) + 8000 * frame(DATA, PADDED, 1, b"\x05" + bytes(5)),
     calm)
case("abuse PRIORITY flood", 8000 * frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)), calm)
case("abuse WINDOW_UPDATE flood", 8000 * window(0, 1), calm)
case("abuse unknown frame flood", 8000 * frame(77, 0, 0), calm)
case("abuse trailers flood", b"".join(request(i, call(), end=False) for i in range(1, 9, 2)) +
     8000 * frame(HEADERS, END_HEADERS, 1, literal("a", "b")), lambda test, c: test.goes_away(c, range(1, 12)))
case("abuse a bomb of references", frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET) + b"\x40\x01a\x7f\xa1\x1e" +
                                         b"x" * 4000 + b"\xbe" * 10000), calm)
case("abuse a thousand empty fields", frame(HEADERS, END_STREAM | END_HEADERS, 1, block(GET) + 1000 * b"\x00\x01a\x00"),
     calm)
case("abuse more streams than allowed", b"".join(request(i, call("/kinora.v1.Kinora/Submit"), end=False)
                                                 for i in range(1, 2 * 1034, 2)),
     lambda test, c: test.refuses_streams(c))


class Conformance(ServerCase):
    flags = ("--grpc", "127.0.0.1:0")

    def connect(self, **options):
        return Raw(int(self.server.said["grpc"][0].rsplit(":", 1)[1]), **options)

    def goes_away(self, c, errors):
        self.assertTrue(c.read_until(lambda: c.goaway is not None), "no GOAWAY came")
        self.assertIn(c.goaway[1], errors, c.goaway)
        c.read_until(lambda: c.closed)
        self.assertTrue(c.closed)

    def hears(self, c, debug):
        self.goes_away(c, (ENHANCE_YOUR_CALM,))
        self.assertEqual(c.goaway[2], debug)

    def is_reset(self, c, errors):
        self.assertTrue(c.finished(1))
        self.assertIn(c.resets.get(1), errors)
        ok(self, c)

    def is_refused_late(self, c):
        """Frames behind the end of a stream: an error of the stream or the connection, or already forgotten."""
        c.send(request(101))
        c.read_until(lambda: c.goaway is not None or 101 in c.ended)
        self.assertTrue(c.goaway is None or c.goaway[1] in (STREAM_CLOSED, PROTOCOL_ERROR), c.goaway)

    def is_not_served(self, c, stream):
        """Ignored, as a stream that was closed long ago may be."""
        ok(self, c)
        self.assertNotIn(stream, c.headers)

    def has_status(self, c, code):
        self.assertTrue(c.read_until(lambda: 1 in c.headers), (c.goaway, c.resets))
        self.assertEqual(c.field(1, ":status"), code)
        ok(self, c)

    def has_grpc(self, c, code, again=True):
        self.assertTrue(c.finished(1), (c.goaway, c.resets))
        self.assertEqual((c.field(1, ":status"), c.field(1, "grpc-status")), ("200", str(code)), c.headers)
        if again:
            ok(self, c)

    def drips(self, c, size):
        """Of the body as much comes as the window lets through."""
        self.assertTrue(c.read_until(lambda: 1 in c.headers and len(c.body.get(1, b"")) == size), c.body)
        self.assertTrue(c.read_until(lambda: c.pongs) if c.send(frame(PING, 0, 0, bytes(8))) else False)
        self.assertEqual(len(c.body.get(1, b"")), size)
        c.send(window(1, 100))
        self.assertTrue(c.finished(1))
        self.assertEqual(c.body[1], b'{"status":"ok"}')

    def stays_shut(self, c, stream):
        self.assertTrue(c.read_until(lambda: stream in c.headers))
        self.assertNotIn(stream, c.body)
        c.send(window(stream, 100))
        self.assertTrue(c.finished(stream))

    def ends_somehow(self, c):
        """The body is far too long for any message: refused, or beyond the window; never kept."""
        self.assertTrue(c.read_until(lambda: c.goaway is not None or 1 in c.ended or 1 in c.resets))

    def refuses_streams(self, c):
        self.assertTrue(c.read_until(lambda: len(c.resets) >= 10 or c.goaway is not None))
        self.assertTrue(c.goaway is not None or set(c.resets.values()) == {REFUSED_STREAM}, c.resets)

    def tearDown(self):
        with self.connect() as good:
            self.assertTrue(good.works(1))


def prefaces():
    for cut in range(1, 24):
        def test(self, cut=cut):
            with self.connect(greet=False) as c:
                c.send(PREFACE[:cut])
                c.read_until(lambda: False, 0.005)
                c.send(PREFACE[cut:] + settings())
                ok(self, c)
        yield f"3_4 a preface cut at {cut}", test
    for name, start in (("wrong", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
                        ("of HTTP/3", b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"),
                        ("none", settings() + request(1))):
        def test(self, start=start):
            with self.connect(greet=False) as c:
                c.send(start)
                try:
                    while c.socket.recv(65536):
                        pass
                except ConnectionError:
                    pass
        yield f"3_4 a preface that is {name}", test
    for name, first in (("HEADERS", request(1)), ("PING", frame(PING, 0, 0, bytes(8))),
                        ("ACK", frame(SETTINGS, ACK, 0))):
        def test(self, first=first):
            with self.connect(greet=False) as c:
                c.send(PREFACE + first)
                self.goes_away(c, (PROTOCOL_ERROR,))
        yield f"3_4 {name} before SETTINGS", test


def test_of(sent, expected):
    def test(self):
        with self.connect() as c:
            c.send(sent)
            expected(self, c)
    return test


for name, function in [*prefaces(), *((n, test_of(*c)) for n, c in cases.items())]:
    setattr(Conformance, "test_" + "".join(x if x.isalnum() else "_" for x in name), function)


class Settings(ServerCase):
    """What an operator may set of a connection."""
    flags = ("--grpc", "127.0.0.1:0", "--grpc-streams-max", "3", "--grpc-idle-seconds", "1")

    def test_streams_and_idle(self):
        with Raw(int(self.server.said["grpc"][0].rsplit(":", 1)[1])) as c:
            self.assertTrue(c.works(1))
            self.assertEqual(c.server_settings[MAX_STREAMS], 3)
            c.read_until(lambda: c.closed)
            self.assertEqual(c.goaway[1:], (NO_ERROR, b"max_idle"))

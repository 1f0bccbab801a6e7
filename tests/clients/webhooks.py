#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Our webhooks, read by other people's libraries: standardwebhooks and openai from PyPI.

    tests/clients/webhooks.py PROGRAM

PROGRAM is kinora (or any program that has its "notifier" command). The script plays the server: it starts the
notifier, hands it deliveries over its socket (server/notify_wire.h) and receives them on 127.0.0.1. It exits with 0
when both libraries accept every delivery and refuse every one that was changed.
"""
import base64
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
from standardwebhooks import Webhook, WebhookVerificationError

CONFIGURE, DELIVER, RESULT = 1, 2, 3
DELIVERED = 0
SECONDS = 60  # against hanging


# ---- the notifier's socket ----

def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data + b"\0"


def texts(values):
    return struct.pack("<B", len(values)) + b"".join(text(v) for v in values)


class Notifier:
    def __init__(self, program, allowed):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        self.process = subprocess.Popen([program, "notifier", "--fd", str(theirs.fileno())],
                                        pass_fds=[theirs.fileno()])
        theirs.close()
        self.ticket = 0
        self.write(struct.pack("<BB", CONFIGURE, 1) + text("") + texts([allowed]))

    def write(self, payload):
        self.socket.sendall(struct.pack("<I", len(payload)) + payload)

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise RuntimeError("the notifier has gone")
            data += more
        return data

    def deliver(self, url, event_id, secrets, body):
        """Sends one delivery and returns (outcome, status, error)."""
        self.ticket += 1
        self.write(struct.pack("<BQ", DELIVER, self.ticket) + text(url) + text(event_id) + texts(secrets) + text(body))
        payload = self.read(struct.unpack("<I", self.read(4))[0])
        kind, ticket, outcome, status, _, size = struct.unpack("<BQBIQI", payload[:26])
        if kind != RESULT or ticket != self.ticket:
            raise RuntimeError("an answer to something else")
        return outcome, status, payload[26:26 + size].decode()

    def close(self):
        self.socket.close()
        return self.process.wait(SECONDS)


# ---- the receiver ----

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


# ---- the libraries ----

def refuses(check):
    try:
        check()
    except (WebhookVerificationError, openai.InvalidWebhookSignatureError, ValueError):
        return True
    return False


def check_standard(secret, headers, body):
    """standardwebhooks, which reads "whsec_" secrets only."""
    hook = Webhook(secret)
    if hook.verify(body, headers) != json.loads(body):
        return "another payload came out"
    moved = dict(headers, **{"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)})
    renamed = dict(headers, **{"webhook-id": headers["webhook-id"] + "x"})
    if not refuses(lambda: hook.verify(body + b" ", headers)) or not refuses(lambda: hook.verify(body, moved)) or \
            not refuses(lambda: hook.verify(body, renamed)):
        return "a changed delivery was accepted"
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), tz=timezone.utc)
    ours = headers["webhook-signature"].split(" ")
    return None if hook.sign(headers["webhook-id"], at, body.decode()) in ours else "its own signature differs"


def check_openai(secret, headers, body):
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    event = client.webhooks.unwrap(body, headers)
    asked = json.loads(body)
    if event.type != asked["type"] or event.id != asked["id"] or event.data.id != asked["data"]["id"]:
        return "another event came out"
    if not refuses(lambda: client.webhooks.unwrap(body + b" ", headers)):
        return "a changed delivery was accepted"
    other = openai.OpenAI(api_key="none", webhook_secret="whsec_" + base64.b64encode(bytes(32)).decode())
    return None if refuses(lambda: other.webhooks.unwrap(body, headers)) else "another secret was accepted"


def event_body(number, kind):
    event = {"id": f"evt_{number:032x}", "object": "event", "created_at": 1700000000 + number, "type": kind,
             "data": {"id": f"video_{number:032x}"}, "note": "\u00e4\u6f22 \"quoted\" \\"}
    return event["id"], json.dumps(event, ensure_ascii=number % 2 == 0).encode()


def main(program):
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = f"127.0.0.1:{server.server_port}"
    coded = ["whsec_" + base64.b64encode(os.urandom(n)).decode() for n in (24, 32, 64)]
    plain = "a secret in plain text, 24 to 64 bytes"
    failures = 0
    notifier = Notifier(program, where)
    for number, kind in enumerate(["video.completed", "video.failed"] * 2):
        for secrets in ([coded[0]], [coded[1], coded[2]], [plain], [plain] + coded):
            event_id, body = event_body(number, kind)
            outcome = notifier.deliver(f"http://{where}/hook?n={number}", event_id, secrets, body)
            headers, received = server.received.pop()
            problems = [] if outcome[:2] == (DELIVERED, 204) and received == body else [f"not delivered: {outcome}"]
            for secret in secrets:
                problems.append(check_openai(secret, headers, received))
                problems.append(check_standard(secret, headers, received) if secret in coded else None)
            for problem in filter(None, problems):
                print(f"{kind}, {len(secrets)} secrets: {problem}")
                failures += 1
    code = notifier.close()
    if code != 0:
        print(f"the notifier ended with {code}")
        failures += 1
    print("webhooks: every delivery verified" if failures == 0 else f"webhooks: {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes engine/html_entities.inc: the named character references of HTML5 from Python's html.entities, sorted by name.

    python3 engine/html_entities.py > engine/html_entities.inc
"""
from html.entities import html5


def c_string(data):
    """A C string literal. Letters and digits stand as they are, everything else as three octal digits."""
    return '"' + "".join(chr(b) if chr(b).isalnum() and b < 128 or b == ord(";") else f"\\{b:03o}" for b in data) + '"'


print("/* SPDX-License-Identifier: Apache-2.0")
print(" * Written by html_entities.py; sorted by name. */")
for name in sorted(html5, key=lambda n: n.encode()):
    print(f"KN_ENTITY({c_string(name.encode())}, {c_string(html5[name].encode())})")

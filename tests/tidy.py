#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules of the tree, as a test.

Every rule is one function that yields violations (path, line, text) and counts as one pass or one failure. Standard
library only, no arguments:

    tests/tidy.py            all rules
    tests/tidy.py NAME ...   only the rules whose name contains one of NAME

Each violation is printed as `path:line: rule: text`; the last line is `N passed, N failed`.
"""
import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Arrows point down: a room may use the rooms before it.
ROOMS = ["base", "kernels", "engine", "scheduler", "server", "cli"]
# What a room shows to the rooms above it. A name with * is matched at its end; None: every header but *_internal.h.
PUBLIC = {"base": None, "kernels": {"kernels/ops.h", "kernels/device.h", "kernels/ops.inc"}, "engine": None,
          "scheduler": {"scheduler/scheduler.h", "scheduler/simulation.h"},
          "server": {"server/server.h", "server/settings.h", "server/child.h"}, "cli": set()}
# Tools beside the rooms that a room's program links in.
BESIDE = {("cli", "benchmarks/bench.h")}
# Libraries a room may not see: operators know neither files nor text, base knows only libc.
FOREIGN = re.compile(r"<(jansson|utf8proc|libav\w+/.*|libsw\w+/.*|dnnl.*|oneapi/.*|sqlite3|event2/.*|curl/.*)(\.h)?>")
FOREIGN_ROOMS = {"base", "kernels"}

FILE_LINES = 800
FUNCTION_LINES = 70
COLUMNS = 120
CLANG_FORMAT_MAJOR = 14  # layouts differ between releases; this is Debian 12's

# Sources (patterns) without tests/<room>/<name>.c, and the test that covers them. A row that nothing needs fails too.
COVERED = {
    "kernels/device_cpu.c": "tests/kernels/device.c",
    "kernels/device_cuda_none.c": "tests/kernels/device.c",
    "kernels/isa.c": "tests/kernels/device.c",
    "kernels/ref/*": "tests/checkops",
    "kernels/cpu/*": "tests/checkops",
    "engine/config.c": "tests/engine/repository.c",
    "engine/repository_configs.c": "tests/engine/repository.c",
    "engine/safetensors.c": "tests/engine/weights.c",
    "engine/weights_*.c": "tests/engine/weights.c",
    "engine/token_*.c": "tests/engine/token.c",
    "engine/comm.c": "tests/engine/comm_local.c",
    "engine/dit_wan.c": "tests/engine/networks.c",
    "engine/loader.c": "tests/engine/networks.c",
    "engine/pack.c": "tests/engine/networks.c",
    "engine/text_umt5.c": "tests/engine/networks.c",
    "engine/vae_*.c": "tests/engine/networks.c",
    "server/admin.c": "tests/clients/main.py",
    "server/together.c": "tests/clients/try_groups.py",
    "server/admin_client.c": "tests/clients/main.py",
    "server/admin_rows.c": "tests/clients/main.py",
    "server/api.c": "tests/clients/main.py",
    "server/api_content.c": "tests/clients/main.py",
    "server/api_videos.c": "tests/clients/main.py",
    "server/api_webhooks.c": "tests/clients/main.py",
    "server/intake.c": "tests/clients/main.py",
    "server/kserve_core.c": "tests/clients/main.py",
    "server/health.c": "tests/clients/main.py",
    "server/kserve_grpc.c": "tests/clients/main.py",
    "server/kserve_http.c": "tests/clients/main.py",
    "server/kserve_infer.c": "tests/clients/main.py",
    "server/tell.c": "tests/clients/main.py",
    "server/front.c": "tests/clients/main.py",
    "server/rpc_*.c": "tests/clients/main.py",
    "server/grpc_*.c": "tests/server/grpc.c",
    "server/h2.c": "tests/server/grpc.c",
    "server/children.c": "tests/kill/kill.py",
    "server/outgoing.c": "tests/server/notify_child.c",
    "server/dispatch.c": "tests/kill/kill.py",
    "server/ending.c": "tests/kill/kill.py",
    "server/housekeeping.c": "tests/kill/kill.py",
    "server/seats.c": "tests/kill/kill.py",
    "server/server.c": "tests/kill/kill.py",
    "server/webhooks.c": "tests/kill/kill.py",
    "server/page.c": "tests/page/page.py",
    "base/point.c": "tests/kill/kill.py",
    "server/store_rows.c": "tests/server/store_admin.c",
    "server/store_schema.c": "tests/server/store_sqlite.c",
    "server/fleet_device.c": "tests/server/fleet.c",
    "server/runner_*.c": "tests/server/runner.c",
    "scheduler/priority.c": "tests/scheduler/scheduler.c",
    "scheduler/change.c": "tests/scheduler/scheduler.c",
    "scheduler/jobs.c": "tests/scheduler/scheduler.c",
    "scheduler/residence.c": "tests/scheduler/decide.c",
    "scheduler/place.c": "tests/scheduler/choice.c",
    "scheduler/check.c": "tests/scheduler/simulation.c",
    "scheduler/trace.c": "tests/scheduler/simulation.c",
    "scheduler/bound.c": "tests/scheduler/simulation.c",
    "scheduler/measure.c": "tests/scheduler/simulation.c",
}

# Not written by hand, or not ours: only the rules about names and places apply.
DATA = re.compile(r"^(tests/golden/[^/]+/.*|clients/python/kinora/v1/.*|"
                  r"LICENSE|.*\.(safetensors|model|png|mp4|gif|webm|svg|bin))$")
SKIPPED_FOLDERS = {".git", "build", ".venv", "__pycache__"}

Violation = namedtuple("Violation", "path line text")


class Skip(Exception):
    """A rule that cannot be judged on this machine."""


# ---- the tree ----

def list_files():
    """Tracked files and new ones that are not ignored; in an unpacked archive, everything but build folders."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                              capture_output=True)
        if done.returncode == 0:
            names = done.stdout.decode().split("\0")
            return sorted({n for n in names if n and (ROOT / n).is_file()})
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
        found += [str((Path(folder) / n).relative_to(ROOT)) for n in names]
    return sorted(found)


FILES = list_files()
FILE_SET = set(FILES)
_texts = {}


def text_of(path):
    if path not in _texts:
        _texts[path] = (ROOT / path).read_bytes().decode("utf-8", errors="replace")
    return _texts[path]


def lines_of(path):
    """(number, line) pairs; split at newlines only, so that numbers are an editor's."""
    return enumerate(text_of(path).split("\n"), 1)


def is_script(path):
    return path not in DATA_SET and "." not in Path(path).name and text_of(path).startswith("#!")


DATA_SET = {f for f in FILES if DATA.match(f)}
WRITTEN = [f for f in FILES if f not in DATA_SET]
# CUDA C++ has no rules of names and layout here; the general ones hold.
CUDA_FILES = [f for f in WRITTEN if f.endswith((".cu", ".cuh")) or f.startswith("kernels/cuda/")]
C_FILES = [f for f in WRITTEN if f.endswith((".c", ".h")) and f not in CUDA_FILES]
HEADERS = [f for f in C_FILES if f.endswith(".h")]
PYTHON = [f for f in WRITTEN if f.endswith(".py")]
SHELL = [f for f in WRITTEN if f.endswith(".sh") or (is_script(f) and re.match(r"#!.*\b(ba|da)?sh\b", text_of(f)))]
CODE = C_FILES + CUDA_FILES + PYTHON + SHELL


def room_of(path):
    return path.split("/")[0]


def is_product(path):
    return room_of(path) in ROOMS


_blanked = {}


def blanked(path):
    """The C text with comments, string and character literals replaced by spaces, line structure kept."""
    if path not in _blanked:
        pattern = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)
        _blanked[path] = pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text_of(path))
    return _blanked[path]


def without_directives(text):
    """Preprocessor lines, with their continuations, replaced by empty lines."""
    return re.sub(r"(?m)^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group().count("\n"), text)


def line_at(text, position):
    return text.count("\n", 0, position) + 1


# ---- rules ----

def check_includes():
    """A file sees its own room, base, and the public headers of rooms below it."""
    for path in C_FILES:
        room = room_of(path)
        for number, line in lines_of(path):
            if room in FOREIGN_ROOMS and re.match(r"\s*#\s*include\s*<", line) and FOREIGN.search(line):
                yield Violation(path, number, f"{room}/ may not include {FOREIGN.search(line).group()}")
            match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if not match:
                continue
            target = match.group(1)
            if target not in FILE_SET:
                yield Violation(path, number, f'"{target}" is not a path from the root of the tree')
                continue
            if room not in ROOMS:
                continue  # tests and benchmarks see everything
            other = room_of(target)
            if other == room or (room, target) in BESIDE:
                continue
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                yield Violation(path, number, f'"{target}" lies above {room}/; includes point down')
            elif target.endswith("_internal.h") or (PUBLIC[other] is not None and target not in PUBLIC[other]):
                yield Violation(path, number, f'"{target}" is private to {other}/')


def check_header_guards():
    """#ifndef KN_<PATH>_H, so that two headers never shadow each other."""
    for path in HEADERS:
        parts = path[:-2].split("/")
        if parts[-1] == parts[-2]:
            parts.pop()  # kernels/ref/ref.h: KN_KERNELS_REF_H
        guard = "KN_" + re.sub(r"\W", "_", "_".join(parts)).upper() + "_H"
        match = re.search(r"(?m)^#ifndef (\w+)\n#define (\w+)$", text_of(path))
        if not match or match.group(1) != guard or match.group(2) != guard:
            yield Violation(path, 1, f"include guard must be {guard}")


def check_file_sizes():
    for path in CODE:
        count = text_of(path).count("\n")
        if count > FILE_LINES:
            yield Violation(path, count, f"{count} lines, the limit is {FILE_LINES}")


def check_function_sizes():
    """Counts from the opening to the closing brace, both in the first column (.clang-format puts them there)."""
    for path in C_FILES:
        if room_of(path) == "kernels":
            continue
        start = None
        for number, line in lines_of(path):
            if line == "{":
                start = number
            elif line == "}" and start is not None:
                if number - start + 1 > FUNCTION_LINES:
                    yield Violation(path, start, f"function of {number - start + 1} lines, the limit is "
                                    f"{FUNCTION_LINES}")
                start = None
    for path in PYTHON:
        for node in ast.walk(parse_python(path) or ast.Module(body=[], type_ignores=[])):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = node.end_lineno - node.lineno + 1
                if count > FUNCTION_LINES:
                    yield Violation(path, node.lineno, f"function of {count} lines, the limit is {FUNCTION_LINES}")


ALLOCATORS = ["malloc", "calloc", "realloc", "reallocarray", "free", "strdup", "strndup", "asprintf", "vasprintf",
              "aligned_alloc", "posix_memalign", "memalign"]
UNBOUNDED = ["strcpy", "strcat", "sprintf", "vsprintf", "gets", "atoi", "atol", "atof", "strtok", "alloca"]
PROCESS = ["system", "exit", "_Exit", "quick_exit", "popen"]


def check_banned_calls():
    """Allocation goes through base/mem.h, libraries never end the process, strings carry their bounds."""
    for path in C_FILES:
        banned = list(UNBOUNDED)
        if is_product(path):
            banned += [] if path == "base/mem.c" else ALLOCATORS
            banned += [] if path == "cli/main.c" else PROCESS
        pattern = re.compile(r"(?<![\w.>])(" + "|".join(banned) + r")\s*\(")
        text = blanked(path)
        for match in pattern.finditer(text):
            yield Violation(path, line_at(text, match.start()), f"{match.group(1)}() is not used here")


def check_words():
    """No notes to self: what is missing is an issue, not a comment."""
    pattern = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    for path in WRITTEN:
        for number, line in lines_of(path):
            match = pattern.search(line)
            if match:
                yield Violation(path, number, f"the word {match.group()}")


def check_places():
    """The tree says nothing about the machine it was written on."""
    pattern = re.compile(r"(?<![\w.}])/(work|root|home|Users|mnt)/|bash" + r"_jobs|(?<![\w.}])/tmp/h-"
                         r"|https?://[^/\s]*(\.internal|\.local|\.corp)\b"
                         r"|\b(this|another|my|the) (workplace|brief)\b|[cC]o-[aA]uthored-[bB]y:")
    for path in WRITTEN:
        for number, line in lines_of(path):
            match = pattern.search(line)
            if match and not line.lstrip().startswith("pattern = re.compile"):
                yield Violation(path, number, f"names a place or a way of working: {match.group().strip()}")


def check_spdx():
    for path in CODE + [f for f in WRITTEN if f.endswith(".inc")]:
        head = text_of(path).split("\n")[:2]
        if path.endswith((".c", ".h", ".inc", ".cu", ".cuh")):
            good = head[0].startswith("/* SPDX-License-Identifier: Apache-2.0")
        else:
            good = "# SPDX-License-Identifier: Apache-2.0" in head[1 if head[0].startswith("#!") else 0:][:1]
        if not good:
            yield Violation(path, 1, "the first line (after #!) must be SPDX-License-Identifier: Apache-2.0")


def check_white_space():
    for path in WRITTEN:
        text = text_of(path)
        if text and not text.endswith("\n"):
            yield Violation(path, text.count("\n") + 1, "no newline at the end")
        if text.endswith("\n\n"):
            yield Violation(path, text.count("\n"), "empty line at the end")
        for number, line in lines_of(path):
            if "\t" in line:
                yield Violation(path, number, "tab")
            if "\r" in line:
                yield Violation(path, number, "carriage return")
            elif line != line.rstrip():
                yield Violation(path, number, "space at the end of the line")


def check_line_length():
    for path in CODE + [f for f in WRITTEN if Path(f).name == "CMakeLists.txt"]:
        for number, line in lines_of(path):
            if len(line) > COLUMNS and not re.search(r"https?://", line):
                yield Violation(path, number, f"{len(line)} columns, the limit is {COLUMNS}")


def check_unique_names():
    """One name, one file inside a language. The tier folders of kernels/ share operator names on purpose."""
    seen = {}
    for path in C_FILES:
        folder = "/".join(path.split("/")[:2])
        if room_of(path) == "tests" or folder in ("kernels/ref", "kernels/cpu", "kernels/cuda"):
            continue
        name = Path(path).name
        if name in seen:
            yield Violation(path, 1, f"the same name as {seen[name]}")
        seen.setdefault(name, path)


def header_functions(path):
    """(name, line, is_static) of every function a header declares or defines at its outermost level."""
    text = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", without_directives(blanked(path)))
    depth, start, statement = 0, 0, ""
    for i, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0 and re.search(r"\)\s*$", statement):
                yield from function_of(statement, text, start)
                statement = ""
        elif depth == 0 and character == ";":
            yield from function_of(statement, text, start)
            statement = ""
        elif depth == 0:
            start = i if not statement.strip() else start
            statement += character


def function_of(statement, text, start):
    match = re.search(r"(\w+)\s*\(", statement)
    if not match or re.match(r"\s*typedef\b", statement) or match.group(1).isupper():
        return
    yield match.group(1), line_at(text, start), bool(re.match(r"\s*(static|KN_INLINE)\b", statement))


def check_names():
    """What a header declares starts with kn_; inline helpers too where other rooms can see them."""
    for path in HEADERS:
        if not is_product(path):
            continue
        room = room_of(path)
        public = PUBLIC[room] is None or path in PUBLIC[room]
        public = public and not path.endswith("_internal.h")
        for name, number, is_static in header_functions(path):
            if not name.startswith("kn_") and (public or not is_static):
                yield Violation(path, number, f"{name}() must start with kn_")
    for path in C_FILES:
        for number, line in lines_of(path):
            match = re.search(r"\b(kn_\w+_t)\b", line)
            if match:
                yield Violation(path, number, f"{match.group(1)}: POSIX keeps names that end in _t for itself")


def check_twins():
    """engine/x.c is tested by tests/engine/x.c, or COVERED says where."""
    used = set()
    for path in C_FILES:
        if room_of(path) not in ("base", "kernels", "engine", "scheduler", "server") or path.endswith(".h"):
            continue
        twin = f"tests/{room_of(path)}/{Path(path).name}"
        if path.count("/") == 1 and twin in FILE_SET:
            continue
        row = next((pattern for pattern in COVERED if fnmatch.fnmatchcase(path, pattern)), None)
        used.add(row)
        if row is None:
            yield Violation(path, 1, f"no {twin} and no row in COVERED (tests/tidy.py)")
        elif not (ROOT / COVERED[row]).exists():
            yield Violation(path, 1, f"COVERED points to {COVERED[row]}, which is not there")
    for row in COVERED:
        if row not in used:
            yield Violation("tests/tidy.py", 1, f"COVERED has a row for {row} that nothing needs")


def check_clang_format():
    tool = shutil.which(f"clang-format-{CLANG_FORMAT_MAJOR}") or shutil.which("clang-format")
    if not tool:
        raise Skip("clang-format is not installed")
    version = re.search(r"version (\d+)", subprocess.run([tool, "--version"], capture_output=True, text=True).stdout)
    if not version or int(version.group(1)) != CLANG_FORMAT_MAJOR:
        raise Skip(f"clang-format {CLANG_FORMAT_MAJOR} is not installed")
    done = subprocess.run([tool, "--dry-run", "-ferror-limit=0", *C_FILES], cwd=ROOT, capture_output=True, text=True)
    seen = set()
    for line in done.stderr.split("\n"):
        match = re.match(r"(\S+?):(\d+):\d+: (?:warning|error)", line)
        if match and match.group(1) not in seen:  # one line per file is enough to act on
            seen.add(match.group(1))
            yield Violation(match.group(1), int(match.group(2)), "differs from .clang-format (clang-format -i FILE)")


_trees = {}


def parse_python(path):
    if path not in _trees:
        try:
            _trees[path] = ast.parse(text_of(path))
        except SyntaxError as error:
            _trees[path] = error
    return None if isinstance(_trees[path], SyntaxError) else _trees[path]


def check_scripts_parse():
    for path in PYTHON + [f for f in WRITTEN if is_script(f) and "python" in text_of(f).split("\n")[0]]:
        if parse_python(path) is None:
            yield Violation(path, _trees[path].lineno or 1, f"does not parse: {_trees[path].msg}")
    for path in SHELL:
        shell = "bash" if "bash" in text_of(path).split("\n")[0] else "sh"
        done = subprocess.run([shell, "-n", path], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            yield Violation(path, 1, f"does not parse: {done.stderr.strip()}")
        if not os.access(ROOT / path, os.X_OK):
            yield Violation(path, 1, "is not executable")
    for path in [f for f in FILES if f.endswith(".json")]:
        try:
            json.loads(text_of(path))
        except ValueError as error:
            yield Violation(path, getattr(error, "lineno", 1), f"does not parse: {error}")


def check_links():
    """A relative link in a page leads somewhere."""
    for path in [f for f in WRITTEN if f.endswith(".md")]:
        for number, line in lines_of(path):
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", line):
                if re.match(r"\w+:", target):
                    continue
                if not (ROOT / Path(path).parent / target).exists():
                    yield Violation(path, number, f"link to {target}, which is not there")


RULES = [
    ("includes", check_includes),
    ("header-guards", check_header_guards),
    ("file-sizes", check_file_sizes),
    ("function-sizes", check_function_sizes),
    ("banned-calls", check_banned_calls),
    ("words", check_words),
    ("places", check_places),
    ("spdx", check_spdx),
    ("white-space", check_white_space),
    ("line-length", check_line_length),
    ("unique-names", check_unique_names),
    ("names", check_names),
    ("twins", check_twins),
    ("clang-format", check_clang_format),
    ("scripts-parse", check_scripts_parse),
    ("links", check_links),
]


def main(wanted):
    passed = failed = 0
    for name, rule in RULES:
        if wanted and not any(w in name for w in wanted):
            continue
        try:
            violations = sorted(set(rule()))
        except Skip as reason:
            print(f"skipped {name}: {reason}")
            continue
        for violation in violations:
            print(f"{violation.path}:{violation.line}: {name}: {violation.text}")
        passed += not violations
        failed += bool(violations)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu without a GPU: its parts, limits and document, with stand-ins for the programs that it runs.

    tests/gpu/control.py        the last line is `N passed, N failed`
"""
import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = '    {"operator": "gemm", "tier": "sm90", "shape": "1 x 2 x 3", "type": "bf16", "seconds": 0.5}'
BENCH = '{"processor": "stand-in", "bounds": [\n    {"tier": "sm90", "memory_gbs": 3000.0}],\n "results": [\n' + ROW

NVIDIA_SMI = 'print("Stand-in GPU, GPU-0, 580.1, 81920, 1980, 2619, 700.0, 9.0")\n'
CHECKOPS = f'''
import sys
if "--bench" in sys.argv:
    print({BENCH + chr(10) + "]," + chr(10) + ' "complete": true}'!r})
else:
    print("gemm               12 passed     0 failed    0.01 s, of which reference 0.00 s")
'''
BROKEN = '''
import sys
if "--bench" in sys.argv:
    sys.exit("no such kernel")
print("gemm               12 passed     1 failed    0.01 s, of which reference 0.00 s")
print("FAIL gemm.sm90 [3] planted")
sys.exit(1)
'''
CUT_OFF = f'''
import sys, time
if "--bench" in sys.argv:
    print({BENCH!r} + ",", flush=True)
    time.sleep(60)
print("gemm               12 passed     0 failed    0.01 s, of which reference 0.00 s")
'''

passed = failed = 0


def png(value):
    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    rows = b"".join(b"\1" + bytes([value]) * 3 + bytes(3) for _ in range(2))  # filter 1: left
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\2\0\0\0\2\x08\2\0\0\0") + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def kinora(on_gpu):
    return f'''
import sys
from pathlib import Path
if "bench" in sys.argv:
    Path(sys.argv[sys.argv.index("--out") + 1]).write_text('{{"results": []}}')
else:
    gpu = "cuda:0" in sys.argv
    Path(sys.argv[sys.argv.index("-o") + 1] .replace("%04d", "0001")).write_bytes({on_gpu!r} if gpu else {png(7)!r})
'''


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def run(programs, *arguments, smi=NVIDIA_SMI):
    """(exit code, output, document) of scripts/gpu with these programs as its build."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place in ["bin", "build", "out"]:
            (folder / place).mkdir()
        if smi:
            program(folder / "bin", "nvidia-smi", smi)
        for key, text in programs.items():
            program(folder / "build", key, text)
        environment = {"PATH": str(folder / "bin"), "OUT": str(folder / "out"), "KN_COMMIT": "abc"}
        done = subprocess.run([sys.executable, str(ROOT / "scripts/gpu"), "--build", str(folder / "build"), *arguments],
                              capture_output=True, text=True, timeout=120, env=environment)
        documents = list((folder / "out").glob("*.json"))
        document = json.loads(documents[0].read_text()) if documents else None
        return done.returncode, done.stdout + done.stderr, document


def expect(what, condition, seen):
    global passed, failed
    if condition:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {what}: {seen}")


def statuses(document):
    return {name: part["status"] for name, part in document["parts"].items()} if document else None


def main():
    code, output, document = run({"checkops": CHECKOPS}, smi=None)
    lines = len(output.strip().splitlines())
    expect("no GPU: one line and code 3", code == 3 and document is None and lines == 1, output)
    code, output, document = run({"checkops": CHECKOPS}, smi="import sys; print('no devices'); sys.exit(6)\n")
    expect("nvidia-smi without a GPU", code == 3 and document is None, output)

    code, output, document = run({"checkops": CHECKOPS, "kinora": kinora(png(9))})
    expect("all well: code 0", code == 0, output)
    ours = {"build", "checkops", "fixtures", "bench", "model"}  # the others depend on what this machine has
    expect("all well: parts", all(statuses(document)[name] == "passed" for name in ours), output)
    parts = document["parts"]
    gpu = document["gpu"]
    judged = parts["checkops"]["result"]["operators"]["gemm"]["passed"]
    expect("all well: document", gpu["name"] == "Stand-in GPU" and gpu["driver_version"] == "580.1" and judged == 12
           and parts["bench"]["result"]["complete"], document)
    expect("pictures are read",
           parts["fixtures"]["result"]["fixtures"][0]["largest"] == 2, parts["fixtures"])

    code, output, document = run({"checkops": BROKEN, "kinora": kinora(png(90))}, "--only",
                                 "build,checkops,fixtures,bench")
    expect("failures: code 1", code == 1, output)
    expect("failures: every part has run", statuses(document) == {
        "build": "passed", "checkops": "failed", "fixtures": "failed", "bench": "failed"}, output)
    named = document["parts"]["checkops"]["why"]["failures"]
    expect("failures: named", named == ["FAIL gemm.sm90 [3] planted"], document)

    code, output, document = run({"checkops": CUT_OFF}, "--only", "build,bench,checkops,fixtures", "--seconds", "14")
    expect("a hang: the rows until then are kept", code == 1 and document["parts"]["bench"]["status"] == "failed"
           and document["parts"]["bench"]["why"]["results"][0]["seconds"] == 0.5, document)
    expect("a hang: the parts behind it run", document["parts"]["checkops"]["status"] == "passed"
           and document["parts"]["fixtures"]["status"] == "skipped", document)

    code, output, document = run({}, "--only", "build,checkops")
    expect("a folder without programs", code == 1 and statuses(document) == {"build": "failed"}, output)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""What the synchronous and the asynchronous client share: no I/O but the file a download goes to."""
from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import grpc

from kinora.errors import KinoraError, NotReady
from kinora.messages import Chunk, Event, Video

SERVICE = "/kinora.v1.Kinora/"
OPTIONS: List[Tuple[str, Any]] = [("grpc.keepalive_time_ms", 60_000), ("grpc.keepalive_timeout_ms", 20_000)]
SUBMIT_FIELDS = ("negative_prompt", "model", "size", "seconds", "num_frames", "fps", "num_inference_steps",
                 "guidance_scale", "flow_shift", "seed", "sampler", "priority", "deadline_seconds", "metadata", "user",
                 "reference")
TLS = Union[None, bool, str, bytes, grpc.ChannelCredentials]


def credentials(tls: TLS) -> Optional[grpc.ChannelCredentials]:
    """None: clear text. True: the system's certificates; a path or PEM bytes: those."""
    if tls is None or tls is False:
        return None
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    if tls is True:
        return grpc.ssl_channel_credentials()
    return grpc.ssl_channel_credentials(Path(tls).read_bytes() if isinstance(tls, str) else tls)


def metadata_of(key: Optional[str], idempotency_key: Optional[str] = None) -> List[Tuple[str, str]]:
    found = []
    if key:
        found.append(("authorization", f"Bearer {key}"))
    if idempotency_key:
        found.append(("idempotency-key", idempotency_key))
    return found


def submit_fields(fields: Dict[str, Any]) -> Dict[str, Any]:
    unknown = sorted(set(fields) - set(SUBMIT_FIELDS))
    if unknown:
        raise TypeError(f"submit() has no field {unknown[0]!r}; it has prompt, {', '.join(SUBMIT_FIELDS)}")
    return fields


class Patience:
    """How long to go on trying: until nothing has come for `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.came()

    def came(self) -> None:
        self.until = time.monotonic() + self.seconds
        self.pause = 0.1

    def next_pause(self, error: KinoraError) -> float:
        """Seconds to wait before the next try; raises `error` when there is none."""
        if time.monotonic() >= self.until:
            raise error
        pause, self.pause = self.pause, min(2 * self.pause, 5.0)
        return max(pause, error.retry_after or 0.0)


class Following:
    """The state of a watch that goes on behind the last event."""

    def __init__(self, after: Optional[str]):
        self.after = after
        self.ended = False

    def take(self, event: Event) -> Event:
        self.after = event.id
        self.ended = event.video is not None and event.video.ended
        return event


def words_of(event: Event) -> Optional[Tuple[int, int, str]]:
    """An event as a progress function is told it."""
    if event.progress:
        p = event.progress
        return p.percent, 100, f"{p.stage or ''} {p.step}/{p.steps}" if p.steps else p.stage or ""
    if event.video:
        return event.video.progress, 100, event.video.status.replace("_", " ")
    return None


class Partial:
    """A download under way: PATH.part and, beside it, which file it is of. What is there already is gone on with."""

    def __init__(self, path: Union[str, "os.PathLike[str]"], expected: Optional[Video]):
        self.path = Path(path)
        self.part = self.path.with_name(self.path.name + ".part")
        self.note = self.path.with_name(self.path.name + ".part.etag")
        self.expected = expected
        self.total = 0
        try:
            self.etag: Optional[str] = self.note.read_text()
            self.offset = self.part.stat().st_size
        except OSError:
            self.begin_anew()

    def begin_anew(self) -> None:
        self.etag, self.offset = None, 0
        for file in (self.part, self.note):
            try:
                file.unlink()
            except FileNotFoundError:
                pass

    def write(self, chunk: Chunk) -> None:
        if chunk.offset != self.offset:
            raise KinoraError(f"the server sent offset {chunk.offset} in place of {self.offset}")
        if self.etag is None:
            self.etag = chunk.etag or ""
            self.note.write_text(self.etag)
        with open(self.part, "ab") as file:
            file.write(chunk.data)
        self.offset += len(chunk.data)
        self.total = chunk.total_bytes

    def may_begin_anew(self, error: KinoraError) -> bool:
        """Was what is here of another file? Then from its start, once."""
        if not isinstance(error, NotReady) or self.offset == 0:
            return False
        self.begin_anew()
        return True

    def finish(self) -> Path:
        """The whole file under its name, checked."""
        with open(self.part, "ab") as file:
            os.fsync(file.fileno())
        if self.expected is not None and self.expected.content_sha256:
            digest = hashlib.sha256()
            with open(self.part, "rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
            if digest.digest() != self.expected.content_sha256:
                self.begin_anew()
                raise KinoraError(f"{self.expected.id}: what came is not the file the server has; nothing was kept")
        os.replace(self.part, self.path)
        self.note.unlink()
        return self.path


def pieces(data: bytes, size: int) -> Sequence[bytes]:
    return [data[at:at + size] for at in range(0, len(data), size)] or [b""]

# SPDX-License-Identifier: Apache-2.0
"""Requests to bytes, bytes to dataclasses: FlatBuffers stay inside this file."""
from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import flatbuffers
from flatbuffers import number_types

from kinora.v1 import Chunk as _Chunk
from kinora.v1 import DownloadRequest as _DownloadRequest
from kinora.v1 import Empty as _Empty
from kinora.v1 import Event as _Event
from kinora.v1 import ListRequest as _ListRequest
from kinora.v1 import ModelList as _ModelList
from kinora.v1 import Pair as _Pair
from kinora.v1 import Reference as _Reference
from kinora.v1 import ReferenceChunk as _ReferenceChunk
from kinora.v1 import SubmitRequest as _SubmitRequest
from kinora.v1 import Video as _Video
from kinora.v1 import VideoList as _VideoList
from kinora.v1 import VideoRequest as _VideoRequest
from kinora.v1 import WatchRequest as _WatchRequest

STATUSES = ("queued", "in_progress", "completed", "failed")
PRIORITIES = ("auto", "default", "flex", "priority")
SAMPLERS = (None, "unipc", "euler")
VARIANTS = ("video", "thumbnail", "spritesheet")
REFERENCE_CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class Failure:
    code: str  # "cancelled", "worker_lost", ...
    message: Optional[str]


@dataclass(frozen=True)
class Video:
    """A job, and what became of it."""
    id: str
    model: str
    status: str  # queued, in_progress, completed, failed
    progress: int  # percent
    prompt: Optional[str]
    width: int
    height: int
    num_frames: int
    fps: float
    seconds: Optional[str]
    num_inference_steps: int
    guidance_scale: float
    seed: int
    priority: str
    created_at: Optional[datetime]
    started_at: Optional[datetime]
    completed_at: Optional[datetime]
    expires_at: Optional[datetime]
    deadline_at: Optional[datetime]
    stage: Optional[str]
    eta_seconds: Optional[float]
    queue_position: Optional[int]  # 0 is next
    failure: Optional[Failure]
    content_bytes: int
    content_sha256: bytes
    device_seconds: float
    metadata: Dict[str, str]
    user: Optional[str]

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed")


@dataclass(frozen=True)
class Page:
    videos: List[Video]
    has_more: bool


@dataclass(frozen=True)
class Progress:
    percent: int
    stage: Optional[str]
    step: int
    steps: int
    eta_seconds: Optional[float]


@dataclass(frozen=True)
class Preview:
    step: int
    mime: str
    image: bytes


@dataclass(frozen=True)
class Event:
    """One of video, progress and preview is there."""
    id: str
    video: Optional[Video] = None
    progress: Optional[Progress] = None
    preview: Optional[Preview] = None


@dataclass(frozen=True)
class Reference:
    """An uploaded picture, for submit(reference=...)."""
    id: str
    mime: str
    bytes: int
    width: int
    height: int
    expires_at: Optional[datetime]


@dataclass(frozen=True)
class Model:
    name: str
    created_at: Optional[datetime]
    ready: bool
    reason: Optional[str]


@dataclass(frozen=True)
class Chunk:
    offset: int
    total_bytes: int
    etag: Optional[str]
    data: bytes


# ---- writing ----

def _camel(field: str) -> str:
    return "".join(word.title() for word in field.split("_"))


def _pairs(builder: flatbuffers.Builder, module: Any, name: str, field: str, values: Mapping[str, str]) -> int:
    made = []
    for key, value in values.items():
        offsets = builder.CreateString(key), builder.CreateString(value)
        _Pair.PairStart(builder)
        _Pair.PairAddKey(builder, offsets[0])
        _Pair.PairAddValue(builder, offsets[1])
        made.append(_Pair.PairEnd(builder))
    getattr(module, f"{name}Start{_camel(field)}Vector")(builder, len(made))
    for offset in reversed(made):
        builder.PrependUOffsetTRelative(offset)
    try:
        return builder.EndVector()
    except TypeError:  # flatbuffers before 2.0.7 wants the length again
        return builder.EndVector(len(made))


def _table(module: Any, **fields: Any) -> bytes:
    """A finished message; fields that are None are left out."""
    name = module.__name__.rsplit(".", 1)[1]
    builder = flatbuffers.Builder(1024)
    made = {}
    for field, value in fields.items():
        if isinstance(value, str):
            made[field] = builder.CreateString(value)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            made[field] = builder.CreateByteVector(bytes(value))
        elif isinstance(value, Mapping):
            made[field] = _pairs(builder, module, name, field, value)
        elif value is not None:
            made[field] = value
    getattr(module, f"{name}Start")(builder)
    for field, value in made.items():
        getattr(module, f"{name}Add{_camel(field)}")(builder, value)
    builder.Finish(getattr(module, f"{name}End")(builder))
    return bytes(builder.Output())


def _index(what: str, names: Tuple[Optional[str], ...], value: Optional[str]) -> Optional[int]:
    if value is None:
        return None
    if value not in names:
        raise ValueError(f"{what} must be one of {', '.join(n for n in names if n)}, not {value!r}")
    return names.index(value)


def _size(size: Union[None, str, Tuple[int, int]]) -> Tuple[Optional[int], Optional[int]]:
    if size is None:
        return None, None
    parts = size.lower().split("x") if isinstance(size, str) else size
    try:
        width, height = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"size must be 'WIDTHxHEIGHT' or (width, height), not {size!r}") from None
    return width, height


def submission(prompt: str, *, size: Union[None, str, Tuple[int, int]] = None, sampler: Optional[str] = None,
               priority: Optional[str] = None, **fields: Any) -> bytes:
    width, height = _size(size)
    return _table(_SubmitRequest, prompt=prompt, width=width, height=height,
                  sampler=_index("sampler", SAMPLERS, sampler), priority=_index("priority", PRIORITIES, priority),
                  **fields)


def by_id(video_id: str) -> bytes:
    return _table(_VideoRequest, id=video_id)


def listing(limit: int, after: Optional[str], ascending: bool) -> bytes:
    return _table(_ListRequest, limit=limit, after=after, ascending=ascending)


def watching(video_id: str, *, after: Optional[str], progress: bool, previews: bool, cancel_with_call: bool) -> bytes:
    return _table(_WatchRequest, id=video_id, after=after, no_progress=not progress, no_previews=not previews,
                  cancel_with_call=cancel_with_call)


def downloading(video_id: str, *, variant: str, offset: int, etag: Optional[str]) -> bytes:
    return _table(_DownloadRequest, id=video_id, variant=_index("variant", VARIANTS, variant), offset=offset,
                  etag=etag or None, chunk_bytes=1 << 20)


def reference_chunk(data: bytes) -> bytes:
    return _table(_ReferenceChunk, data=data)


def empty() -> bytes:
    return _table(_Empty)


# ---- reading ----

def _text(value: Optional[bytes]) -> Optional[str]:
    return value.decode() if value is not None else None


def _time(microseconds: int) -> Optional[datetime]:
    return datetime.fromtimestamp(microseconds / 1e6, timezone.utc) if microseconds else None


def _known(value: float) -> Optional[float]:
    return value if value >= 0 else None


def _bytes(table: Any, slot: int) -> bytes:
    """A vector of bytes at once: the generated accessors do that with NumPy only."""
    tab = table._tab
    offset = number_types.UOffsetTFlags.py_type(tab.Offset(slot))
    if not offset:
        return b""
    start = tab.Vector(offset)
    return bytes(tab.Bytes[start:start + tab.VectorLen(offset)])


_SHA256, _IMAGE, _DATA = 54, 8, 12  # slots in the vtables of Video, Preview and Chunk


def _video(v: Any) -> Video:
    failure = v.Failure()
    return Video(
        id=v.Id().decode(), model=v.Model().decode(), status=STATUSES[v.Status()], progress=v.Progress(),
        prompt=_text(v.Prompt()), width=v.Width(), height=v.Height(), num_frames=v.NumFrames(),
        fps=v.FpsNumerator() / v.FpsDenominator() if v.FpsDenominator() else 0.0, seconds=_text(v.Seconds()),
        num_inference_steps=v.NumInferenceSteps(), guidance_scale=v.GuidanceScale(), seed=v.Seed(),
        priority=PRIORITIES[v.Priority()], created_at=_time(v.CreatedAt()), started_at=_time(v.StartedAt()),
        completed_at=_time(v.CompletedAt()), expires_at=_time(v.ExpiresAt()), deadline_at=_time(v.DeadlineAt()),
        stage=_text(v.Stage()), eta_seconds=_known(v.EtaSeconds()),
        queue_position=v.QueuePosition() if v.QueuePosition() >= 0 else None,
        failure=Failure(failure.Code().decode(), _text(failure.Message())) if failure else None,
        content_bytes=v.ContentBytes(), content_sha256=_bytes(v, _SHA256), device_seconds=v.DeviceSeconds(),
        metadata=json.loads(v.Metadata()) if v.Metadata() else {}, user=_text(v.User()))


def video(data: bytes) -> Video:
    return _video(_Video.Video.GetRootAs(data, 0))


def page(data: bytes) -> Page:
    p = _VideoList.VideoList.GetRootAs(data, 0)
    return Page([_video(p.Videos(i)) for i in range(p.VideosLength())], bool(p.HasMore()))


def event(data: bytes) -> Event:
    e = _Event.Event.GetRootAs(data, 0)
    state, progress, preview = e.Video(), e.Progress(), e.Preview()
    return Event(
        id=e.Id().decode(), video=_video(state) if state else None,
        progress=Progress(progress.Percent(), _text(progress.Stage()), progress.Step(), progress.Steps(),
                          _known(progress.EtaSeconds())) if progress else None,
        preview=Preview(preview.Step(), preview.Mime().decode(), _bytes(preview, _IMAGE)) if preview else None)


def chunk(data: bytes) -> Chunk:
    c = _Chunk.Chunk.GetRootAs(data, 0)
    return Chunk(c.Offset(), c.TotalBytes(), _text(c.Etag()), _bytes(c, _DATA))


def reference(data: bytes) -> Reference:
    r = _Reference.Reference.GetRootAs(data, 0)
    return Reference(r.Id().decode(), r.Mime().decode(), r.Bytes(), r.Width(), r.Height(), _time(r.ExpiresAt()))


def models(data: bytes) -> List[Model]:
    m = _ModelList.ModelList.GetRootAs(data, 0)
    listed = [m.Models(i) for i in range(m.ModelsLength())]
    return [Model(x.Name().decode(), _time(x.CreatedAt()), bool(x.Ready()), _text(x.Reason())) for x in listed]

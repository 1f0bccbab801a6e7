# SPDX-License-Identifier: Apache-2.0
"""The synchronous client."""
from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import grpc

from kinora import messages
from kinora.core import (OPTIONS, SERVICE, TLS, Following, Partial, Patience, credentials, metadata_of, pieces,
                         submit_fields, words_of)
from kinora.errors import KinoraError, Unavailable, VideoFailed, from_rpc
from kinora.messages import Event, Model, Page, Reference, Video
from kinora.progress import Progress, close, reporter

T = TypeVar("T")


class Client:
    """One connection to a server's gRPC address. Safe to use from several threads.

    key       an API key, where the server asks for one
    tls       True, a file of certificates to trust, or grpc.ChannelCredentials; without: clear text
    timeout   seconds for a call that is not a stream
    patience  seconds to go on trying while the server cannot be reached or turns callers away
    """

    def __init__(self, target: str = "127.0.0.1:8001", *, key: Optional[str] = None, tls: TLS = None,
                 timeout: float = 60.0, patience: float = 60.0, options: Sequence[Tuple[str, Any]] = ()):
        trusted = credentials(tls)
        options = [*OPTIONS, *options]
        self._channel = (grpc.secure_channel(target, trusted, options) if trusted
                         else grpc.insecure_channel(target, options))
        self._key, self._timeout, self._patience = key, timeout, patience

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- jobs ----

    def submit(self, prompt: str, *, idempotency_key: Optional[str] = None, **fields: Any) -> Video:
        """Makes a job: negative_prompt, model, size ("416x240" or (416, 240)), seconds, num_frames, fps,
        num_inference_steps, guidance_scale, flow_shift, seed, sampler ("unipc", "euler"), priority ("flex", "default",
        "priority"), deadline_seconds, metadata, user, reference. Tried again as long as the server is out of reach; the
        key, made up where none is given, keeps that from making two."""
        body = messages.submission(prompt, **submit_fields(fields))
        key = idempotency_key or uuid.uuid4().hex
        return self._again(lambda: self._ask("Submit", body, messages.video, idempotency_key=key))

    def get(self, video_id: str) -> Video:
        return self._ask("Get", messages.by_id(video_id), messages.video)

    def list(self, *, limit: int = 20, after: Optional[str] = None, ascending: bool = False) -> Page:
        """A page of jobs, the newest first unless ascending, behind the job `after`."""
        return self._ask("List", messages.listing(limit, after, ascending), messages.page)

    def videos(self, *, ascending: bool = False) -> Iterator[Video]:
        """All jobs, page after page."""
        after = None
        while True:
            page = self.list(limit=100, after=after, ascending=ascending)
            yield from page.videos
            if not page.has_more or not page.videos:
                return
            after = page.videos[-1].id

    def cancel(self, video_id: str) -> Video:
        return self._ask("Cancel", messages.by_id(video_id), messages.video)

    def delete(self, video_id: str) -> None:
        self._ask("Delete", messages.by_id(video_id), bytes)

    def models(self) -> List[Model]:
        return self._ask("Models", messages.empty(), messages.models)

    # ---- following ----

    def watch(self, video_id: str, *, after: Optional[str] = None, progress: bool = True, previews: bool = False,
              cancel_with_call: bool = False) -> Iterator[Event]:
        """Events until the job has ended. After a broken connection it goes on behind the last one, for as long as
        `patience` says."""
        following, patience = Following(after), Patience(self._patience)
        while not following.ended:
            body = messages.watching(video_id, after=following.after, progress=progress, previews=previews,
                                     cancel_with_call=cancel_with_call)
            try:
                for data in self._stream("Watch", body):
                    patience.came()
                    yield following.take(messages.event(data))
                if not following.ended:
                    raise Unavailable("the server ended the stream early")
            except Unavailable as error:
                time.sleep(patience.next_pause(error))

    def wait(self, video_id: str, *, progress: Progress = None) -> Video:
        """The finished video. progress: True draws a bar on a terminal; or a function of (done, total, words)."""
        report = reporter(progress)
        try:
            for event in self.watch(video_id):
                told = words_of(event)
                if told:
                    report(*told)
                if event.video and event.video.ended:
                    if event.video.status == "failed":
                        raise VideoFailed(event.video)
                    return event.video
        finally:
            close(report)
        raise KinoraError(f"{video_id}: the stream ended before the job")

    # ---- files ----

    def download(self, video_id: str, path: Union[str, "os.PathLike[str]"], *, variant: str = "video",
                 progress: Progress = None) -> Path:
        """The file ("video", "thumbnail" or "spritesheet") at `path`. What came before a failure stays in PATH.part,
        and the next call goes on from there."""
        expected = self.get(video_id) if variant == "video" else None
        partial, patience, report = Partial(path, expected), Patience(self._patience), reporter(progress)
        try:
            while True:
                body = messages.downloading(video_id, variant=variant, offset=partial.offset, etag=partial.etag)
                try:
                    for data in self._stream("Download", body):
                        partial.write(messages.chunk(data))
                        patience.came()
                        report(partial.offset, partial.total, f"{partial.offset / 1e6:.1f} MB")
                    return partial.finish()
                except Unavailable as error:
                    time.sleep(patience.next_pause(error))
                except KinoraError as error:
                    if not partial.may_begin_anew(error):
                        raise
        finally:
            close(report)

    def upload_reference(self, picture: Union[bytes, str, "os.PathLike[str]"]) -> Reference:
        """Bytes or a path; the reference's id goes to submit(reference=...)."""
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        call = self._channel.stream_unary(SERVICE + "UploadReference")
        chunks = (messages.reference_chunk(piece) for piece in pieces(data, messages.REFERENCE_CHUNK_BYTES))
        try:
            return messages.reference(call(chunks, timeout=self._timeout, metadata=metadata_of(self._key)))
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def generate(self, prompt: str, path: Union[str, "os.PathLike[str]"], *, progress: Progress = None,
                 **fields: Any) -> Video:
        """submit, wait and download in one."""
        video = self.wait(self.submit(prompt, **fields).id, progress=progress)
        self.download(video.id, path, progress=progress)
        return video

    # ---- calls ----

    def _ask(self, method: str, body: bytes, read: Callable[[bytes], T], idempotency_key: Optional[str] = None) -> T:
        call = self._channel.unary_unary(SERVICE + method)
        try:
            data = call(body, timeout=self._timeout, metadata=metadata_of(self._key, idempotency_key))
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return read(data)

    def _stream(self, method: str, body: bytes) -> Iterator[bytes]:
        call = self._channel.unary_stream(SERVICE + method)(body, metadata=metadata_of(self._key))
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()

    def _again(self, attempt: Callable[[], T]) -> T:
        patience = Patience(self._patience)
        while True:
            try:
                return attempt()
            except Unavailable as error:
                time.sleep(patience.next_pause(error))

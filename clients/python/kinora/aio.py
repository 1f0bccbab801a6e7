# SPDX-License-Identifier: Apache-2.0
"""The same client for asyncio."""
from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, List, Optional, Sequence, Tuple, TypeVar, Union

import grpc

from kinora import messages
from kinora.core import (OPTIONS, SERVICE, TLS, Following, Partial, Patience, credentials, metadata_of, pieces,
                         submit_fields, words_of)
from kinora.errors import KinoraError, Unavailable, VideoFailed, from_rpc
from kinora.messages import Event, Model, Page, Reference, Video
from kinora.progress import Progress, close, reporter

T = TypeVar("T")


class AsyncClient:
    """kinora.Client's calls as coroutines and asynchronous iterators. Made and used inside one event loop."""

    def __init__(self, target: str = "127.0.0.1:8001", *, key: Optional[str] = None, tls: TLS = None,
                 timeout: float = 60.0, patience: float = 60.0, options: Sequence[Tuple[str, Any]] = ()):
        trusted = credentials(tls)
        options = [*OPTIONS, *options]
        self._channel = (grpc.aio.secure_channel(target, trusted, options) if trusted
                         else grpc.aio.insecure_channel(target, options))
        self._key, self._timeout, self._patience = key, timeout, patience

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- jobs ----

    async def submit(self, prompt: str, *, idempotency_key: Optional[str] = None, **fields: Any) -> Video:
        body = messages.submission(prompt, **submit_fields(fields))
        key = idempotency_key or uuid.uuid4().hex
        return await self._again(lambda: self._ask("Submit", body, messages.video, idempotency_key=key))

    async def get(self, video_id: str) -> Video:
        return await self._ask("Get", messages.by_id(video_id), messages.video)

    async def list(self, *, limit: int = 20, after: Optional[str] = None, ascending: bool = False) -> Page:
        return await self._ask("List", messages.listing(limit, after, ascending), messages.page)

    async def videos(self, *, ascending: bool = False) -> AsyncIterator[Video]:
        after = None
        while True:
            page = await self.list(limit=100, after=after, ascending=ascending)
            for video in page.videos:
                yield video
            if not page.has_more or not page.videos:
                return
            after = page.videos[-1].id

    async def cancel(self, video_id: str) -> Video:
        return await self._ask("Cancel", messages.by_id(video_id), messages.video)

    async def delete(self, video_id: str) -> None:
        await self._ask("Delete", messages.by_id(video_id), bytes)

    async def models(self) -> List[Model]:
        return await self._ask("Models", messages.empty(), messages.models)

    # ---- following ----

    async def watch(self, video_id: str, *, after: Optional[str] = None, progress: bool = True, previews: bool = False,
                    cancel_with_call: bool = False) -> AsyncIterator[Event]:
        following, patience = Following(after), Patience(self._patience)
        while not following.ended:
            body = messages.watching(video_id, after=following.after, progress=progress, previews=previews,
                                     cancel_with_call=cancel_with_call)
            try:
                async for data in self._stream("Watch", body):
                    patience.came()
                    yield following.take(messages.event(data))
                if not following.ended:
                    raise Unavailable("the server ended the stream early")
            except Unavailable as error:
                await asyncio.sleep(patience.next_pause(error))

    async def wait(self, video_id: str, *, progress: Progress = None) -> Video:
        report = reporter(progress)
        try:
            async for event in self.watch(video_id):
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

    async def download(self, video_id: str, path: Union[str, "os.PathLike[str]"], *, variant: str = "video",
                       progress: Progress = None) -> Path:
        expected = await self.get(video_id) if variant == "video" else None
        partial, patience, report = Partial(path, expected), Patience(self._patience), reporter(progress)
        try:
            while True:
                body = messages.downloading(video_id, variant=variant, offset=partial.offset, etag=partial.etag)
                try:
                    async for data in self._stream("Download", body):
                        partial.write(messages.chunk(data))
                        patience.came()
                        report(partial.offset, partial.total, f"{partial.offset / 1e6:.1f} MB")
                    return partial.finish()
                except Unavailable as error:
                    await asyncio.sleep(patience.next_pause(error))
                except KinoraError as error:
                    if not partial.may_begin_anew(error):
                        raise
        finally:
            close(report)

    async def upload_reference(self, picture: Union[bytes, str, "os.PathLike[str]"]) -> Reference:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        call = self._channel.stream_unary(SERVICE + "UploadReference")
        chunks = [messages.reference_chunk(piece) for piece in pieces(data, messages.REFERENCE_CHUNK_BYTES)]
        try:
            return messages.reference(await call(iter(chunks), timeout=self._timeout,
                                                 metadata=metadata_of(self._key)))
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    async def generate(self, prompt: str, path: Union[str, "os.PathLike[str]"], *, progress: Progress = None,
                       **fields: Any) -> Video:
        video = await self.wait((await self.submit(prompt, **fields)).id, progress=progress)
        await self.download(video.id, path, progress=progress)
        return video

    # ---- calls ----

    async def _ask(self, method: str, body: bytes, read: Callable[[bytes], T],
                   idempotency_key: Optional[str] = None) -> T:
        call = self._channel.unary_unary(SERVICE + method)
        try:
            data = await call(body, timeout=self._timeout, metadata=metadata_of(self._key, idempotency_key))
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return read(data)

    async def _stream(self, method: str, body: bytes) -> AsyncIterator[bytes]:
        call = self._channel.unary_stream(SERVICE + method)(body, metadata=metadata_of(self._key))
        try:
            async for data in call:
                yield data
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        patience = Patience(self._patience)
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                await asyncio.sleep(patience.next_pause(error))

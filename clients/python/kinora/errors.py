# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as types. The server says which field, what is allowed and when to come back; it says so in a
google.rpc.Status, of which this reads what it needs."""
from __future__ import annotations

import re
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Tuple, Type, Union

import grpc

if TYPE_CHECKING:
    from kinora.messages import Video


class KinoraError(Exception):
    """A call that was refused or could not be made."""

    def __init__(self, message: str, *, code: Optional[grpc.StatusCode] = None, reason: Optional[str] = None,
                 field: Optional[str] = None, retry_after: Optional[float] = None):
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason  # "invalid_value", "deadline_unattainable", ...
        self.field = field  # the field at fault, as the API calls it
        self.retry_after = retry_after  # seconds
        found = re.search(r"\b(?:it )?(?:must be|must have|at most|one of)\b.*", message)
        self.limit = found.group(0).rstrip(".") if field and found else None  # what is allowed, in words


class InvalidRequest(KinoraError):
    """The request is wrong: .field and .limit say where and how."""


class NotFound(KinoraError):
    """No such job, model or picture of this tenant."""


class Conflict(KinoraError):
    """The idempotency key came before with another request."""


class NotReady(KinoraError):
    """Not from the state the job is in."""


class Unauthenticated(KinoraError):
    """The API key is missing or wrong."""


class PermissionDenied(KinoraError):
    """The API key may not do this."""


class LimitExceeded(KinoraError):
    """A quota, a rate, or a deadline that cannot be kept."""


class Unavailable(KinoraError):
    """The server cannot be reached, is full, or is being shut down."""


class DeadlineExceeded(KinoraError):
    """The call took longer than its timeout."""


class Cancelled(KinoraError):
    """The call was cancelled."""


class VideoFailed(KinoraError):
    """The job ended without a video; .video says why."""

    def __init__(self, video: Video):
        failure = video.failure
        super().__init__(f"{video.id}: {failure.message or failure.code}" if failure else video.id,
                         reason=failure.code if failure else None)
        self.video = video


_TYPES: Dict[grpc.StatusCode, Type[KinoraError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: NotReady,
    grpc.StatusCode.ABORTED: NotReady,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}

_Value = Union[int, bytes]


def _fields(data: bytes) -> Iterator[Tuple[int, _Value]]:
    """(number, value) of a protobuf message that has only varints and length-delimited fields."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            count = varint()
            yield tag >> 3, data[at:at + count]
            at += count
        else:
            return


def _of(data: bytes, number: int) -> List[_Value]:
    return [value for found, value in _fields(data) if found == number]


def _text(data: bytes, number: int) -> Optional[str]:
    values = _of(data, number)
    return values[0].decode(errors="replace") if values and isinstance(values[0], bytes) else None


def read_details(status: bytes) -> Dict[str, Union[str, float, None]]:
    """field, reason and retry_after of a serialized google.rpc.Status, as far as they are there."""
    out: Dict[str, Union[str, float, None]] = {}
    try:
        for detail in _of(status, 3):
            kind, value = _text(detail, 1) or "", next(iter(_of(detail, 2)), b"")
            if kind.endswith("google.rpc.BadRequest"):
                out["field"] = _text(next(iter(_of(value, 1)), b""), 1)
            elif kind.endswith("google.rpc.ErrorInfo"):
                out["reason"] = _text(value, 1)
            elif kind.endswith("google.rpc.RetryInfo"):
                seconds = _of(next(iter(_of(value, 1)), b""), 1)
                out["retry_after"] = float(seconds[0]) if seconds else None
    except (IndexError, TypeError):  # cut short: the message alone has to do
        pass
    return out


def from_rpc(error: grpc.RpcError) -> KinoraError:
    """The typed form of what grpcio raised."""
    code = error.code()
    trailers = {key: value for key, value in (error.trailing_metadata() or ())}
    details = read_details(trailers.get("grpc-status-details-bin", b""))
    return _TYPES.get(code, KinoraError)(error.details() or code.name, code=code, **details)

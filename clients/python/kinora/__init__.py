# SPDX-License-Identifier: Apache-2.0
"""Client for Kinora's gRPC front: submit, watch and download generated videos. See README.md."""
from kinora.aio import AsyncClient
from kinora.client import Client
from kinora.errors import (Cancelled, Conflict, DeadlineExceeded, InvalidRequest, KinoraError, LimitExceeded, NotFound,
                           NotReady, PermissionDenied, Unauthenticated, Unavailable, VideoFailed)
from kinora.messages import Event, Failure, Model, Page, Preview, Progress, Reference, Video

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Cancelled", "Client", "Conflict", "DeadlineExceeded", "Event", "Failure", "InvalidRequest",
           "KinoraError", "LimitExceeded", "Model", "NotFound", "NotReady", "Page", "PermissionDenied", "Preview",
           "Progress", "Reference", "Unauthenticated", "Unavailable", "Video", "VideoFailed"]

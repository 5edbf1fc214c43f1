"""Errors of `service`.

ServiceError
├── RequestError             a request that cannot be answered; each kind has its gRPC status code in `rpc`
│   ├── InvalidRequest       wrong, and will stay so
│   ├── UnknownImage         no image, or no generation, of that name
│   ├── ImageIdTaken         the image id belongs to another image
│   ├── Overloaded           a queue is full
│   ├── NotAuthenticated     no token, or an unknown one
│   ├── NotPermitted         a token without the scope
│   ├── NotServed            this server was started without what the request needs
│   └── GenerationChanged    the pages of a listing belong to a generation that is no longer served
├── GenerationRefused        a generation that is damaged, or of another embedder
├── LogError                 the upload log cannot be written or read
│   ├── LogFull              its disk, or Redis, is full
│   └── Overtaken            another replica wrote to it since; never told to a caller
├── SettingsError            settings, certificates or tokens that cannot be served with
└── CallFailed               the client's: a call that the server refused, or that did not reach it
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of every error that `service` raises on purpose."""


class RequestError(ServiceError):
    """A request that cannot be answered."""


class InvalidRequest(RequestError):
    """A request that is wrong, and will stay so."""


class UnknownImage(RequestError):
    """There is no image, or no generation, of that name."""


class ImageIdTaken(RequestError):
    """The image id belongs to another image."""


class Overloaded(RequestError):
    """A queue is full; the same request may succeed later."""


class NotAuthenticated(RequestError):
    """No token, or an unknown one."""


class NotPermitted(RequestError):
    """A token without the scope that the call needs."""


class NotServed(RequestError):
    """The server was started without what the request needs."""


class GenerationChanged(RequestError):
    """The pages of a listing belong to a generation that is no longer served."""


class GenerationRefused(ServiceError):
    """A generation that is damaged or of another embedder; the one before is still served."""


class LogError(ServiceError):
    """The upload log cannot be written or read."""


class LogFull(LogError):
    """The disk of the upload log, or the memory of Redis, is full."""


class Overtaken(LogError):
    """Another replica wrote to the log since this one read it: what was decided has to be decided again."""


class SettingsError(ServiceError):
    """Settings, certificates or tokens that cannot be served with."""


class CallFailed(ServiceError):
    """A call that the server refused or that did not reach it; `code` is the gRPC status code's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

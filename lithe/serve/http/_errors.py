"""Errors as the API tells them: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lithe.errors import FormatError, LitheError, TooLargeError, UnsupportedError, UsageError

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error. param: the parameter at fault, as a path into the body. code: a word for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else KINDS[400])
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """What is wrong with a request that was understood."""
    return ApiError(400, message, param=param, code=code)


def told(problem: LitheError, param: str | None = None) -> ApiError:
    """What a request asked for and cannot have, as an answer; what is no fault of the request is a 500."""
    if isinstance(problem, TooLargeError):
        return bad(str(problem), param, "context_length_exceeded")
    if isinstance(problem, UsageError | UnsupportedError):
        return bad(str(problem), param, "unsupported" if isinstance(problem, UnsupportedError) else "invalid_value")
    if isinstance(problem, FormatError) and param is not None:
        return bad(str(problem), param)
    return ApiError(500, str(problem), code="internal_error")

"""A request's bytes as JSON, with nothing let through that a later part would stumble over."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from lithe.serve.http._errors import ApiError, bad


class LeftError(Exception):
    """The client left before its request was whole."""


async def body(request: Request, *, most: int, seconds: float) -> Any:
    """The JSON document that was posted. Raises ApiError: 408 too slow, 413 too large, 415 no JSON by its type, 400."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, f"the body must be application/json, not {kind[:80] or 'of no type'}",
                       code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not read", code="unsupported_media_type")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    try:
        data = await asyncio.wait_for(_whole(request, most), seconds)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s", code="request_timeout") from None
    return parse(data)


async def _whole(request: Request, most: int) -> bytes:
    data = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise LeftError
        data += message.get("body", b"")
        if len(data) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(data)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", code="request_too_large", headers={"Connection": "close"})


def parse(data: bytes) -> Any:
    """Strict JSON: no NaN, no key twice, no half of a surrogate pair, none nested deeper than Python goes."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails on what is no text
        return value
    except UnicodeError as problem:
        raise bad(f"the body is no text in UTF-8: {problem}", code="invalid_json") from None
    except RecursionError:
        raise bad("the body is nested too deeply", code="invalid_json") from None
    except ValueError as problem:
        raise bad(f"the body is not JSON: {problem}", code="invalid_json") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r:.80} stands twice in an object")
    return found

"""Between the engine's thread and the server's loop: tickets as one stream of events, and streams as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lithe.serve.http._errors import ApiError, bad
from lithe.serve.http._metrics import Watch
from lithe.serve.request import Event, Ticket, Usage

ENDS = {"eos": "stop", "cancelled": None, "refused": None, "error": None}  # others are called as they are, or `length`
QUIET = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
SLACK = 0.01  # seconds by which a loop's alarm may be early


class Answer:
    """Tickets under way, as one stream of (number of the text, event). Leaving `events` early cancels them."""

    def __init__(self, tickets: Iterable[Ticket], *, asked: bool = False, watch: Watch | None = None):
        """asked: the client itself set a deadline, so a text that ends there is an answer. watch: sees every event."""
        self.tickets, self.asked, self.watch = list(tickets), asked, watch
        self.usages: dict[int, Usage] = {}
        self.ends: dict[int, str] = {}
        self.texts = sum(ticket.request.choices for ticket in self.tickets)

    async def events(self, quiet: float | None = None) -> AsyncGenerator[tuple[int, Event] | None, None]:
        """Events as they come; None after every `quiet` seconds without one. Raises ApiError for a text that failed."""
        found, first = Box(), 0
        for ticket in self.tickets:
            ticket.listen(partial(found.put, first))
            first += ticket.request.choices
        begun = set()
        try:
            while len(self.usages) < self.texts:
                if (item := await found.get(quiet)) is None:
                    yield None
                    continue
                number, event = item
                begun |= {number} if event.tokens else set()
                if self.watch is not None:
                    self.watch.see(number, event)
                if event.finished:
                    self.usages[number] = event.usage or Usage()
                    self.ends[number] = event.finished
                    self._check(event, number in begun)
                yield number, event
        finally:
            self.cancel()
            if self.watch is not None:
                self.watch.leave(self.texts - len(self.usages))

    def cancel(self) -> None:
        for ticket in self.tickets:
            if not ticket.finished:
                ticket.cancel()

    def _check(self, event: Event, begun: bool) -> None:
        """An end that is no answer."""
        if event.finished == "refused":  # known only now: a grammar that its library gave up on, or that no token meets
            raise bad(event.error or "this text cannot be written", code="unsupported")
        if event.finished == "error":
            raise ApiError(500, event.error or "the engine failed", code="engine_error")
        if event.finished == "cancelled":
            raise ApiError(503, "the server is going down", code="cancelled", headers={"Retry-After": "5"})
        if event.finished == "deadline" and not (self.asked and begun):
            raise ApiError(504, "the time limit passed before the text was done; ask for fewer tokens",
                           code="deadline_exceeded")

    @property
    def usage(self) -> Usage:
        """Of all texts together; a prompt counts once, however many texts it has."""
        total, first = Usage(), 0
        for ticket in self.tickets:
            ours = [self.usages.get(first + i, Usage()) for i in range(ticket.request.choices)]
            total.prompt += len(ticket.request.prompt)
            total.cached += ours[0].cached
            first += len(ours)
            for one in ours:
                for name in COUNTED:
                    setattr(total, name, getattr(total, name) + getattr(one, name))
                for part, seconds in one.seconds.items():
                    total.seconds[part] = max(total.seconds.get(part, 0.0), seconds)
        return total


COUNTED = ("generated", "passes", "rows", "drafted", "accepted", "accepted_prediction", "rejected_prediction", "preempted")


class Box:
    """Events from the engine's thread to one that waits in the running loop. It is woken only while it waits."""

    def __init__(self) -> None:
        self.loop, self.items = asyncio.get_running_loop(), deque[tuple[int, Event]]()
        self.waiter: asyncio.Future[None] | None = None

    def put(self, first: int, event: Event) -> None:
        """Called by the engine. first: the number of the ticket's first text."""
        self.items.append((first + event.choice, event))
        if self.waiter is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self, seconds: float | None) -> tuple[int, Event] | None:
        """The next event; None after so many seconds without one."""
        if self.items:
            return self.items.popleft()
        end = None if seconds is None else self.loop.time() + seconds
        alarm = None if end is None else self.loop.call_at(end, self._wake)
        try:
            while True:
                self.waiter = self.loop.create_future()
                if self.items:  # looked at once the waiter is there to be woken
                    return self.items.popleft()
                await self.waiter
                if not self.items and end is not None and self.loop.time() >= end - SLACK:
                    return None
        finally:
            self.waiter = None
            if alarm is not None:
                alarm.cancel()


def reason(end: str) -> str | None:
    """The API's word for how a text ended."""
    return ENDS.get(end, end if end in ("stop", "length") else "length")


def usage_of(answer: Answer) -> dict[str, Any]:
    """The usage in OpenAI's shape."""
    total = answer.usage
    details = {"reasoning_tokens": 0}
    if any(ticket.request.prediction is not None for ticket in answer.tickets):
        details |= {"accepted_prediction_tokens": total.accepted_prediction,
                    "rejected_prediction_tokens": total.rejected_prediction}
    return {"prompt_tokens": total.prompt, "completion_tokens": total.generated, "total_tokens": total.prompt + total.generated,
            "prompt_tokens_details": {"cached_tokens": total.cached}, "completion_tokens_details": details}


def line(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + dumped(value) + b"\n\n"


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def gone(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Any) -> Any:
    """The result of `work`, or None where the client left before; then the work is cancelled and ends first."""
    done, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None
    finally:
        for task in (done, left):
            task.cancel()
        await asyncio.gather(done, left, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. Where the client leaves, what makes them is closed at once."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]):
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if await unless_gone(receive, self._write(send)):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> bool:
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        return True

"""What answers of both kinds have in common, whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lithe.serve.http._answer import DONE, QUIET, Answer, EventStream, dumped, line, unless_gone, usage_of
from lithe.serve.http._errors import ApiError
from lithe.serve.http._json import LeftError
from lithe.serve.http._service import Service
from lithe.serve.http._shared import Shared
from lithe.serve.http._tokens import pieces
from lithe.serve.request import Event, TokenLogprob


class Shape:
    """One answer's form. Texts are numbered; prefix, kind and piece are what its ids and objects are called."""

    prefix = kind = piece = ""

    def __init__(self, service: Service, body: Shared, answer: Answer, seed: int):
        self.service, self.body, self.answer, self.seed = service, body, answer, seed
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.texts = [""] * answer.texts
        self.report = bool(body.lithe and body.lithe.report)
        self.traces = [Trace(service, answer, number) for number in range(answer.texts)] if self.report else []
        self.counts = bool(body.stream_options and body.stream_options.include_usage)

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        """What comes first of a streamed text."""
        yield from ()

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        """An event as choices of chunks."""
        raise NotImplementedError

    def take(self, number: int, event: Event) -> None:
        """Note an event for the whole answer."""
        self.texts[number] += event.text
        if self.report:
            self.traces[number].add(event)

    def choices(self) -> list[dict[str, Any]]:
        """The texts of the whole answer."""
        raise NotImplementedError

    def frame(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model,
                "system_fingerprint": self.service.fingerprint, "choices": choices, **more}

    def told(self) -> dict[str, Any]:
        """What decoding cost, for whoever asked."""
        if not self.report:
            return {}
        total = self.answer.usage
        sources = sum((trace.sources for trace in self.traces), Counter[str]())
        return {"lithe": {
            "method": self.answer.tickets[0].request.method or self.service.engine.method or "plain", "seed": self.seed,
            "passes": total.passes, "rows": total.rows, "drafted": total.drafted, "accepted": total.accepted,
            "tokens_per_pass": round(total.generated / max(total.passes, 1), 3), "preempted": total.preempted,
            "sources": {name or "model": count for name, count in sources.items()},
            "seconds": {part: round(seconds, 6) for part, seconds in total.seconds.items()}}}


class Trace:
    """Where the tokens of one text came from, and the text that each made certain."""

    def __init__(self, service: Service, answer: Answer, number: int):
        prompts = [ticket.request.prompt for ticket in answer.tickets for _ in range(ticket.request.choices)]
        self.push = pieces(service.bench.tokenizer, prompts[number])
        self.all: dict[str, list] = {"tokens": [], "sources": [], "pieces": []}
        self.sources: Counter[str] = Counter()

    def add(self, event: Event) -> dict[str, list]:
        new: dict[str, list] = {"tokens": list(event.tokens), "sources": list(event.sources),
                                "pieces": [self.push(token) for token in event.tokens]}
        for key, values in new.items():
            self.all[key] += values
        self.sources.update(event.sources)
        return new


def shown(event: Event) -> list[TokenLogprob]:
    """Log probabilities of the tokens that stand in the text: not of the one that ends it."""
    found = event.logprobs or []
    return found[:-1] if event.finished == "eos" else found


async def respond(request: HttpRequest, shape: Shape) -> Response:
    """The answer, whole or streamed as the body asks."""
    if shape.body.stream:
        return EventStream(stream(shape, request.state.facts))
    return await unless_left(request, whole(shape, request.state.facts))


async def unless_left(request: HttpRequest, work: Any) -> Response:
    found = await unless_gone(request.receive, work)
    if found is None:
        raise LeftError
    return Response(dumped(found), media_type="application/json")


async def whole(shape: Shape, facts: dict[str, Any]) -> dict[str, Any]:
    async for item in shape.answer.events():
        if item is not None:
            shape.take(*item)
    note(shape, facts)
    return shape.frame(shape.kind, shape.choices(), usage=usage_of(shape.answer), **shape.told())


async def stream(shape: Shape, facts: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events. An error on the way is an event of its own; [DONE] ends both."""
    empty = {"usage": None} if shape.counts else {}
    send = lambda choice: line(shape.frame(shape.piece, [choice], **empty))
    events = shape.answer.events(shape.service.settings.quiet)
    try:
        yield b"".join(send(choice) for number in range(shape.answer.texts) for choice in shape.opening(number)) or QUIET
        async for item in events:
            if item is None:
                yield QUIET
            elif found := b"".join(map(send, shape.chunks(*item))):
                yield found
        note(shape, facts)
        if shape.counts or shape.report:
            counted = {"usage": usage_of(shape.answer)} if shape.counts else {}
            yield line(shape.frame(shape.piece, [], **counted, **shape.told()))
        yield DONE
    except ApiError as problem:
        facts["error"] = problem.message
        yield line(problem.body) + DONE
    finally:
        await events.aclose()
        shape.answer.cancel()


def note(shape: Shape, facts: dict[str, Any]) -> None:
    """For the log."""
    total = shape.answer.usage
    facts |= {"prompt_tokens": total.prompt, "cached_tokens": total.cached, "completion_tokens": total.generated,
              "passes": total.passes, "finished": sorted(set(shape.answer.ends.values()))}
    if shape.service.settings.prompts:
        facts["texts"] = shape.texts

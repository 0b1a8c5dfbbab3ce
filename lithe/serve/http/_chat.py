"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lithe.serve.http._answer import Answer, reason
from lithe.serve.http._bodies import FUNCTION, NONE, Chat
from lithe.serve.http._build import conversation, drawn, forced, request as built
from lithe.serve.http._service import Service
from lithe.serve.http._shape import Shape, respond, shown
from lithe.serve.request import Event, Request, TokenLogprob


async def chat(service: Service, request: HttpRequest) -> Response:
    body = await service.read(request, Chat)
    seed, (_, name) = drawn(body), forced(body)
    made = await asyncio.to_thread(_request, service, body, seed)
    answer = await service.submit([made], asked=bool(body.lithe and body.lithe.deadline))
    return await respond(request, Talk(service, body, answer, seed, name))


def _request(service: Service, body: Chat, seed: int) -> Request:
    prompt = conversation(service.bench, body.messages, tools=body.tools or (), opened=body.add_generation_prompt,
                          variables=body.chat_template_kwargs)
    return built(service.bench, body, prompt, choices=body.n, seed=seed, param="messages", constraint=forced(body)[0],
                 logprobs=body.top_logprobs or 0 if body.logprobs else None)


class Talk(Shape):
    """Texts of /v1/chat/completions: what the assistant says, or the one function it was made to call."""

    prefix, kind, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: Chat

    def __init__(self, service: Service, body: Chat, answer: Answer, seed: int, name: str | None):
        """name: of the function to call, where that is settled; then the text is its arguments."""
        super().__init__(service, body, answer, seed)
        self.calls, self.name = bool(body.tools) and body.tool_choice not in (None, NONE), name
        self.ids = [f"call_{uuid.uuid4().hex[:24]}" for _ in self.texts]
        self.found: list[list[TokenLogprob]] = [[] for _ in self.texts]

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        yield self._choice(number, {"role": "assistant", "content": None if self.calls else ""})
        if self.name is not None:
            yield self._choice(number, {"tool_calls": [{"index": 0, **self._call(number, self.name, "")}]})

    def take(self, number: int, event: Event) -> None:
        super().take(number, event)
        self.found[number] += shown(event)

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        self.texts[number] += event.text
        logprobs = self._logprobs(found) if self.body.logprobs and (found := shown(event)) else None
        more = {"lithe": self.traces[number].add(event)} if self.report else {}
        delta = self._delta(number, event)
        if delta or logprobs or (more and event.tokens):
            yield self._choice(number, delta, logprobs) | more
        if event.finished:
            yield self._choice(number, {}, end=self._end(number, event.finished))

    def _delta(self, number: int, event: Event) -> dict[str, Any]:
        if not self.calls:
            return {"content": event.text} if event.text else {}
        if self.name is not None:
            return {"tool_calls": [{"index": 0, "function": {"arguments": event.text}}]} if event.text else {}
        if not event.finished:
            return {}  # which function it is shows once the call is whole
        message = self._message(number)
        if message["content"] is not None:
            return {"content": message["content"]}
        return {"tool_calls": [{"index": 0, **call} for call in message["tool_calls"]]}

    def choices(self) -> list[dict[str, Any]]:
        made = []
        for number, found in enumerate(self.found):
            logprobs = self._logprobs(found) if self.body.logprobs else None
            more = {"lithe": self.traces[number].all} if self.report else {}
            made.append({"index": number, "message": self._message(number), "logprobs": logprobs,
                         "finish_reason": self._end(number, self.answer.ends[number])} | more)
        return made

    def _message(self, number: int) -> dict[str, Any]:
        """A text as the assistant's message; a call of an open choice that broke off is told as content."""
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        if not self.calls:
            return message | {"content": self.texts[number]}
        name, arguments = self.name, self.texts[number]
        if name is None:
            try:
                said = json.loads(arguments)
                name, arguments = said["name"], json.dumps(said["arguments"], ensure_ascii=False)
            except (ValueError, TypeError, KeyError):
                return message | {"content": arguments}
        return message | {"tool_calls": [self._call(number, name, arguments)]}

    def _call(self, number: int, name: str, arguments: str) -> dict[str, Any]:
        return {"id": self.ids[number], "type": FUNCTION, "function": {"name": name, "arguments": arguments}}

    def _end(self, number: int, end: str) -> str | None:
        return "tool_calls" if self.calls and reason(end) == "stop" else reason(end)

    def _logprobs(self, found: list[TokenLogprob]) -> dict[str, Any]:
        assert self.service.tokens is not None
        return {"content": self.service.tokens.chat(found), "refusal": None}

    def _choice(self, number: int, delta: dict[str, Any], logprobs: dict | None = None,
                end: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": end}

"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lithe.serve.http._answer import Answer, reason
from lithe.serve.http._bodies import Completion
from lithe.serve.http._build import drawn, encode, request as built
from lithe.serve.http._errors import bad
from lithe.serve.http._service import Service
from lithe.serve.http._shape import Shape, respond, shown
from lithe.serve.request import Event, Request, TokenLogprob


async def completions(service: Service, request: HttpRequest) -> Response:
    body = await service.read(request, Completion)
    seed, each = drawn(body), body.best_of or body.n
    if (texts := len(body.prompts) * each) > service.facts.choices:
        raise bad(f"the request asks for {texts} texts, more than {service.facts.choices}", "n" if each > 1 else "prompt")
    requests = await asyncio.to_thread(_requests, service, body, seed, each)
    answer = await service.submit(requests, asked=bool(body.lithe and body.lithe.deadline))
    return await respond(request, Plain(service, body, answer, seed))


def _requests(service: Service, body: Completion, seed: int, each: int) -> list[Request]:
    found = []
    wants = {"stop": body.stops, "echo": body.echo, "logprobs": body.logprobs is not None,
             "lithe.report": body.lithe and body.lithe.report}
    if service.tokens is None and (named := [name for name, asked in wants.items() if asked]):
        raise bad(f"this model has no tokenizer, which {named[0]} needs", named[0], "unsupported")
    ranked = each > body.n
    for i, prompt in enumerate(body.prompts):
        param = "prompt" if len(body.prompts) == 1 else f"prompt[{i}]"
        ids = encode(service.bench, prompt, param)
        found.append(built(service.bench, body, ids, choices=each, seed=seed, param=param, constraint=body.constraint(),
                           logprobs=0 if ranked and body.logprobs is None else body.logprobs,
                           echo=body.echo and body.logprobs is not None))
    return found


class Plain(Shape):
    """Texts of /v1/completions."""

    prefix, kind, piece = "cmpl", "text_completion", "text_completion"
    body: Completion

    def __init__(self, service: Service, body: Completion, answer: Answer, seed: int):
        super().__init__(service, body, answer, seed)
        self.prompts = [ticket.request.prompt for ticket in answer.tickets for _ in range(ticket.request.choices)]
        self.found: list[list[TokenLogprob]] = [[] for _ in self.texts]
        if body.echo:
            self.texts = [prompt if isinstance(prompt, str) else service.bench.tokenizer.decode(prompt)
                          for prompt, ticket in zip(body.prompts, answer.tickets, strict=True)
                          for _ in range(ticket.request.choices)]

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        if self.body.echo and self.body.logprobs is None:
            yield self._choice(number, self.texts[number], None, None)

    def take(self, number: int, event: Event) -> None:
        super().take(number, event)
        self.found[number] += [*(event.prompt_logprobs or ()), *shown(event)]

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        text, before = event.text, len(self.texts[number])
        if event.prompt_logprobs is not None:
            text, before = self.texts[number] + text, 0
        new = [*(event.prompt_logprobs or ()), *shown(event)]
        self.texts[number] += event.text
        logprobs = None if self.body.logprobs is None or not new else self._logprobs(new, before)
        more = {"lithe": self.traces[number].add(event)} if self.report else {}
        if text or logprobs or event.finished or (more and event.tokens):
            yield self._choice(number, text, logprobs, event.finished) | more

    def choices(self) -> list[dict[str, Any]]:
        """The n texts of each prompt, the likeliest of best_of by the mean log probability of their tokens."""
        each, order = self.answer.tickets[0].request.choices, []
        for first in range(0, len(self.texts), each):
            numbers = list(range(first, first + each))
            if each > self.body.n:
                numbers.sort(key=self._badness)
            order += numbers[: self.body.n]
        made = []
        for index, number in enumerate(order):
            logprobs = None if self.body.logprobs is None else self._logprobs(self.found[number], 0)
            more = {"lithe": self.traces[number].all} if self.report else {}
            made.append(self._choice(number, self.texts[number], logprobs, self.answer.ends[number]) | {"index": index} | more)
        return made

    def _badness(self, number: int) -> float:
        found = [one.logprob for one in self.found[number] if one.logprob is not None]
        return -sum(found) / max(len(found), 1)

    def _logprobs(self, found: list[TokenLogprob], offset: int) -> dict[str, Any]:
        assert self.service.tokens is not None
        return self.service.tokens.plain(found, offset)

    def _choice(self, number: int, text: str, logprobs: dict | None, end: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": end and reason(end)}

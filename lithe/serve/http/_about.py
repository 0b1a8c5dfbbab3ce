"""The small endpoints: models, tokens, health, version, metrics, the schema."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lithe import __version__
from lithe.serve.http._answer import dumped
from lithe.serve.http._bodies import Detokenize, Tokenize
from lithe.serve.http._build import blamed, conversation
from lithe.serve.http._errors import ApiError
from lithe.serve.http._schema import openapi
from lithe.serve.http._service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def answer(value: Any, status: int = 200) -> Response:
    return Response(dumped(value), status_code=status, media_type="application/json")


async def models(service: Service, request: HttpRequest) -> Response:
    return answer({"object": "list", "data": [_model(service, name) for name in service.facts.models]})


async def model(service: Service, request: HttpRequest) -> Response:
    name = request.path_params["id"]
    if name not in service.facts.models:
        raise ApiError(404, f"there is no model {name!r:.80}; there are {', '.join(service.facts.models)}", param="model",
                       code="model_not_found")
    return answer(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    base = service.settings.name
    return {"id": name, "object": "model", "created": service.created, "owned_by": "lithe", "root": base,
            "parent": None if name == base else base, "max_model_len": service.facts.context}


async def tokenize(service: Service, request: HttpRequest) -> Response:
    body = await service.read(request, Tokenize)

    def work() -> tuple[int, ...]:
        if body.messages is not None:
            return conversation(service.bench, body.messages, opened=body.add_generation_prompt)
        with blamed("prompt"):
            return tuple(service.bench.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens))

    ids = await asyncio.to_thread(work)
    more = {"token_strs": [service.tokens.text(token) for token in ids]} if body.return_token_strs and service.tokens else {}
    return answer({"tokens": ids, "count": len(ids), "max_model_len": service.facts.context, **more})


async def detokenize(service: Service, request: HttpRequest) -> Response:
    body = await service.read(request, Detokenize)
    return answer({"prompt": await asyncio.to_thread(lambda: service.bench.tokenizer.decode(body.tokens, special=True))})


async def health(service: Service, request: HttpRequest) -> Response:
    """Whether the process works: the engine's thread lives."""
    alive = service.engine.alive
    return answer({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)


async def ready(service: Service, request: HttpRequest) -> Response:
    """Whether new requests are taken."""
    if service.draining or not service.engine.alive:
        return answer({"status": "going down" if service.draining else "the engine has stopped"}, 503)
    return answer({"status": "ready"})


async def version(service: Service, request: HttpRequest) -> Response:
    return answer({"version": __version__})


async def metrics(service: Service, request: HttpRequest) -> Response:
    return Response(service.metrics.text(service.engine.stats()), media_type=PROMETHEUS)


async def schema(service: Service, request: HttpRequest) -> Response:
    return answer(openapi(service.facts))

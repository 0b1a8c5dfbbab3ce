"""The OpenAPI document: bodies from the parameters' one declaration, answers by hand."""

from __future__ import annotations

from typing import Any

from lithe import __version__
from lithe.serve.http._bodies import Chat, Completion, Detokenize, Tokenize
from lithe.serve.http._params import Facts, schema

TEXT, COUNT, FLAG, REAL = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "number"}
NULL = {"type": "null"}


def many(item: dict) -> dict:
    return {"type": "array", "items": item}


def maybe(item: dict) -> dict:
    return {"anyOf": [item, NULL]}


def thing(*optional: str, **properties: dict) -> dict:
    """An object of these properties; those named may be missing."""
    return {"type": "object", "properties": properties, "required": [name for name in properties if name not in optional]}


ERROR = thing(error=thing(message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT)))
STATUS = thing(status=TEXT)
MODEL = thing(id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT, root=TEXT, parent=maybe(TEXT),
              max_model_len=COUNT)
USAGE = thing(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT,
              prompt_tokens_details=thing(cached_tokens=COUNT),
              completion_tokens_details=thing("accepted_prediction_tokens", "rejected_prediction_tokens",
                                              reasoning_tokens=COUNT, accepted_prediction_tokens=COUNT,
                                              rejected_prediction_tokens=COUNT))
TRACE = thing(tokens=many(COUNT), sources=many(TEXT), pieces=many(TEXT))
REPORT = thing(method=TEXT, seed=COUNT, passes=COUNT, rows=COUNT, drafted=COUNT, accepted=COUNT, tokens_per_pass=REAL,
               preempted=COUNT, sources={"type": "object"}, seconds={"type": "object"})
CALL = thing(id=TEXT, type={"const": "function"}, function=thing(name=TEXT, arguments=TEXT))
ONE = dict(token=TEXT, logprob=REAL, bytes=many(COUNT))
LOGPROBS = thing(content=many(thing(**ONE, top_logprobs=many(thing(**ONE)))), refusal=NULL)
PLAIN_LOGPROBS = thing(tokens=many(TEXT), token_logprobs=many(maybe(REAL)), top_logprobs=many(maybe({"type": "object"})),
                       text_offset=many(COUNT))
END = maybe({"enum": ["stop", "length", "tool_calls"]})
MESSAGE = thing("tool_calls", role={"const": "assistant"}, content=maybe(TEXT), refusal=NULL, tool_calls=many(CALL))


def _whole(kind: str, choice: dict) -> dict:
    return thing("lithe", id=TEXT, object={"const": kind}, created=COUNT, model=TEXT, system_fingerprint=TEXT,
                 choices=many(choice), usage=USAGE, lithe=REPORT)


CHAT = _whole("chat.completion", thing("lithe", index=COUNT, message=MESSAGE, logprobs=maybe(LOGPROBS), finish_reason=END,
                                        lithe=TRACE))
PLAIN = _whole("text_completion", thing("lithe", index=COUNT, text=TEXT, logprobs=maybe(PLAIN_LOGPROBS), finish_reason=END,
                                        lithe=TRACE))
TOKENS = thing("token_strs", tokens=many(COUNT), count=COUNT, max_model_len=COUNT, token_strs=many(TEXT))


def openapi(facts: Facts) -> dict[str, Any]:
    """The document for a server of these facts."""
    posts = [("/v1/chat/completions", "Answer a conversation", Chat, CHAT, True),
             ("/v1/completions", "Go on from a prompt", Completion, PLAIN, True),
             ("/tokenize", "A text's tokens", Tokenize, TOKENS, False),
             ("/detokenize", "The text of tokens", Detokenize, thing(prompt=TEXT), False)]
    gets = [("/v1/models", "The model and its adapters", thing(object={"const": "list"}, data=many(MODEL)), ()),
            ("/v1/models/{id}", "One of them", MODEL, (404,)), ("/health", "Does it work?", STATUS, (503,)),
            ("/ready", "Does it take requests?", STATUS, (503,)), ("/version", "Lithe's version", thing(version=TEXT), ()),
            ("/openapi.json", "This document", {"type": "object"}, ())]
    paths: dict[str, Any] = {path: {"post": _post(path, meaning, schema(kind, facts), made, streams)}
                             for path, meaning, kind, made, streams in posts}
    paths |= {path: {"get": _get(path, meaning, made, errors)} for path, meaning, made, errors in gets}
    paths["/v1/models/{id}"]["get"]["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT}]
    paths["/metrics"] = {"get": {"operationId": "metrics", "summary": "Counters for Prometheus", "responses": {
        "200": {"description": "text", "content": {"text/plain": {"schema": TEXT}}}} | _errors(401, 403)}}
    return {"openapi": "3.1.0", "info": {"title": "lithe", "version": __version__}, "paths": paths,
            "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}, "security": [{}, {"key": []}]}


def _post(path: str, meaning: str, body: dict, made: dict, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": made}}
    if streams:
        content["text/event-stream"] = {"schema": TEXT}
    return {"operationId": path.strip("/").replace("/", "_"), "summary": meaning,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": {"description": "done", "content": content}}
            | _errors(400, 401, 403, 404, 408, 413, 415, *((429, 500, 503, 504) if streams else ()))}


def _get(path: str, meaning: str, made: dict, errors: tuple[int, ...]) -> dict[str, Any]:
    told = {str(status): {"description": "no", "content": {"application/json": {"schema": {"anyOf": [made, ERROR]}}}}
            for status in errors}
    return {"operationId": path.strip("/").replace("/", "_").replace("{id}", "id"), "summary": meaning,
            "responses": {"200": {"description": "done", "content": {"application/json": {"schema": made}}}}
            | _errors(401, 403) | told}


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): {"description": "what is wrong", "content": {"application/json": {"schema": ERROR}}}
            for status in statuses}

"""From a body that was read to requests of the engine."""

from __future__ import annotations

import json
import re
import secrets
import typing
from collections.abc import Iterable, Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass

from lithe import registry
from lithe.diffuse.plan import ROOM, SLOTS
from lithe.errors import LitheError, UnsupportedError
from lithe.model.decoder import Decoder
from lithe.model.tokenizer import Tokenizer
from lithe.sampling.law import Law
from lithe.serve.http._bodies import NONE, Chat, Choice, Completion, Message, Tool
from lithe.serve.http._errors import bad, told
from lithe.serve.http._shared import Constraint, Shared
from lithe.serve.request import Request

READS = {("decode", "draft"), ("decode", "tree"), ("decode", "accept"), ("decode", "search")}  # of models from left to right
SPEC = re.compile(r"[\w/=]+(:.*)?", re.DOTALL)  # a name of the shelf: no path, which would be somebody's file


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What requests are built with."""

    model: Decoder
    adapters: tuple[str, ...] = ()
    methods: frozenset[str] = frozenset()  # specs that a request may name whatever they say
    timeout: float = 600.0

    @property
    def fills(self) -> bool:
        """Whether the model fills masked places instead of reading from left to right."""
        return self.model.config.attends != "causal"

    @property
    def shelves(self) -> set[tuple[str, str]]:
        """Rooms and shelves whose methods a request may name."""
        return ({(ROOM, slot) for slot in SLOTS} if self.fills else READS) | {("sampling", "warp")}

    @property
    def tokenizer(self) -> Tokenizer:
        if self.model.tokenizer is None:
            raise bad("this model has no tokenizer: give prompts as token ids", code="unsupported")
        return self.model.tokenizer


@contextmanager
def blamed(param: str | None) -> typing.Iterator[None]:
    """What lithe refuses here is that parameter's fault."""
    try:
        yield
    except LitheError as problem:
        raise told(problem, param) from None


def encode(bench: Bench, prompt: str | Seq[int], param: str = "prompt") -> tuple[int, ...]:
    """Token ids of a prompt that leaves room in the context."""
    with blamed(param):
        ids = tuple(bench.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    if not ids:
        raise bad(f"{param} is empty", param)
    return ids


def conversation(bench: Bench, messages: Iterable[Message], *, tools: Seq[Tool] = (), opened: bool = True,
                 variables: dict | None = None) -> tuple[int, ...]:
    """Token ids of a conversation in the model's own template."""
    extra = dict(variables or {})
    if reserved := sorted({"messages", "tools", "add_generation_prompt"} & extra.keys()):
        raise bad(f"chat_template_kwargs sets {reserved[0]}, which has a parameter of its own", "chat_template_kwargs")
    plain = [message.plain for message in messages]
    shown = [{"type": tool.type, "function": {"name": tool.function.name, "description": tool.function.description or "",
              "parameters": tool.function.parameters or {}}} for tool in tools] or None
    with blamed("messages"):
        text = bench.tokenizer.chat(plain, add_generation_prompt=opened, tools=shown, **extra)
        if extra and text == bench.tokenizer.chat(plain, add_generation_prompt=opened, tools=shown):
            raise bad("this model's chat template reads none of chat_template_kwargs", "chat_template_kwargs")
        return tuple(bench.tokenizer.encode(text, bos=False))


def request(bench: Bench, body: Shared, prompt: tuple[int, ...], *, choices: int, seed: int, logprobs: int | None,
            constraint: Constraint = None, echo: bool = False, param: str = "prompt") -> Request:
    """One prompt as the engine takes it."""
    context, ours = bench.model.config.context, body.lithe
    limit = body.limit or context - len(prompt)
    if len(prompt) + limit > context or limit < 1:
        wanted = f" and {body.limit} are to follow" if body.limit else ""
        raise bad(f"the context is {context} tokens: {param} has {len(prompt)}{wanted}; shorten it"
                  f"{' or lower max_tokens' if body.limit else ''}", param, "context_length_exceeded")
    deadline = min(bench.timeout, ours.deadline if ours and ours.deadline else bench.timeout)
    chosen = law(bench, body)
    if bench.fills:
        _check_filled(body, chosen, constraint, logprobs)
        if bench.model.config.mask_token in prompt:
            raise bad(f"{param} holds the mask, which stands for an open place: is a word of it unknown here?", param)
    with blamed("prediction"):
        guess = None if body.prediction is None else tuple(bench.tokenizer.encode(body.prediction.text, bos=False))
    return Request(
        prompt=prompt, law=chosen, max_tokens=limit, seed=seed, stops=body.stops, ignore_eos=body.ignore_eos,
        choices=choices, method=method(bench, body), adapter=body.model if body.model in bench.adapters else None,
        constraint=constraint and constraint[0], constraint_text=_text_of(constraint), prediction=guess,
        logprobs=logprobs, echo=echo, priority=ours.priority if ours else 0, deadline=deadline, user=body.user)


def _check_filled(body: Shared, law: Law, constraint: Constraint, logprobs: int | None) -> None:
    """Name the parameter that would read a text from left to right: this model fills masked places in any order."""
    reads = next((spec.entry.name for spec, warp in zip(law.specs, law.warps, strict=True) if warp.reads_context), None)
    formats = ("structured_outputs", "response_format", "tools")
    form = next((name for name in formats if getattr(body, name, None)), formats[0]) if constraint else None
    ranks = None if logprobs is None else "best_of" if getattr(body, "logprobs", None) is None else "logprobs"
    warp = reads if reads is None or hasattr(body, reads) else "lithe.warps"
    if name := form or ("prediction" if body.prediction else None) or ranks or warp:
        raise bad(f"{name} reads a text from left to right, and this model fills masked places in any order: leave it out",
                  name, "unsupported_parameter")


def _text_of(constraint: Constraint) -> str | None:
    """What it enforces, where its method takes such a text."""
    if constraint is None or not registry.find(constraint[0], "constrain").module.TAKES_TEXT:
        return None
    return constraint[1]


def drawn(body: Shared) -> int:
    """The seed that was given, or a fresh one."""
    return body.seed if body.seed is not None else secrets.randbits(62)


def law(bench: Bench, body: Shared) -> Law:
    """What to sample from: as asked, else as the model's generation_config wishes, else at temperature 1 like OpenAI's API."""
    wishes = {} if bench.model.settings.get("do_sample") else dict(temperature=1.0)
    given = dict(
        temperature=body.temperature, top_p=body.top_p, top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p, typical=body.typical_p, repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty, frequency_penalty=body.frequency_penalty,
        logit_bias=_biases(bench, body.logit_bias))
    warps = body.lithe.warps or () if body.lithe else ()
    for i, spec in enumerate(warps):
        _check_spec(bench, spec, f"lithe.warps[{i}]", "warp")
    with blamed("lithe.warps" if warps else None):
        asked = {name: value for name, value in given.items() if value is not None}
        said = {registry.parse(text, "warp").entry.name for text in warps}
        return Law.wished(bench.model.settings, *warps, **({n: v for n, v in wishes.items() if n not in said} | asked))


def _biases(bench: Bench, amounts: dict[str, float] | None) -> str | None:
    if not amounts:
        return None
    for key in amounts:
        if not re.fullmatch("0|[1-9][0-9]{0,8}", key) or int(key) >= bench.model.config.vocab:
            raise bad(f"logit_bias names token {key!r:.40}: tokens are numbers from 0 to {bench.model.config.vocab - 1}",
                      BIASES)
    return "+".join(f"{key}={value:.12f}" for key, value in amounts.items())


BIASES = next(iter(dict(logit_bias=0)))  # the parameter's name, which is a method's as well


def method(bench: Bench, body: Shared) -> str | None:
    """The decoding method that was asked for."""
    spec = body.lithe.spec if body.lithe else None
    if spec is not None and spec not in bench.methods:
        for part in spec.split(" + "):
            _check_spec(bench, part, "lithe.method", None)
    return spec


def _check_spec(bench: Bench, text: str, where: str, shelf: str | None) -> None:
    """A spec from outside names a method of the shelf, and no file, folder or model of this machine."""
    if text in bench.methods:
        return
    if not SPEC.fullmatch(text.strip()):
        raise bad(f"{where} is {text!r:.80}, which is not name:knob=value,knob=value", where)
    with blamed(where):
        spec = registry.parse(text, shelf)
        if (spec.entry.room, spec.entry.shelf) not in bench.shelves and shelf is None:
            raise UnsupportedError(f"{spec.entry.address} does not take part in generating by this model")
        if (spec.entry.shelf == "warp") != (shelf == "warp"):
            raise UnsupportedError(f"{spec.entry.address} is a warp: it belongs in lithe.warps")
        knobs = spec.entry.module.Knobs.__dataclass_fields__
        hints = typing.get_type_hints(spec.entry.module.Knobs)
        for name in spec.values:
            if str in (hints[name], *typing.get_args(hints[name])) and not knobs[name].metadata.get("choices"):
                raise UnsupportedError(f"{spec.entry.name}: {name} is for whoever runs the server, who can allow "
                                       f"{text!r:.80} by --allow-method")


def choices_of(body: Completion) -> int:
    return body.best_of or body.n


def forced(body: Chat) -> tuple[Constraint, str | None]:
    """The constraint of a call that tool_choice demands, and the function's name where it is settled."""
    if not body.tools or body.tool_choice in (None, NONE):
        return body.constraint(), None
    named = body.tool_choice.function.name if isinstance(body.tool_choice, Choice) else None
    tools = [tool.function for tool in body.tools if named in (None, tool.function.name)]
    schemas = [tool.parameters or {"type": "object"} for tool in tools]
    if len(tools) > 1:
        calls = [{"type": "object", "properties": {"name": {"const": tool.name}, "arguments": schema},
                  "required": ["name", "arguments"], "additionalProperties": False}
                 for tool, schema in zip(tools, schemas, strict=True)]
        return next(iter(dict(json_schema=json.dumps({"anyOf": calls})).items())), None
    return next(iter(dict(json_schema=json.dumps(schemas[0])).items())), tools[0].name

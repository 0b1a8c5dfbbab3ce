"""The parameters that chat and plain completions share."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from typing import Any

from lithe import registry
from lithe.serve.http._errors import bad
from lithe.serve.http._params import Facts, param, refused

TEXT = "text"
Constraint = tuple[str, str] | None  # a spec of sampling/constrain, and what it enforces


def models(facts: Facts) -> tuple[str, ...]:
    return facts.models


def formats(facts: Facts) -> tuple[str, ...]:
    """What an answer's format may be: free, or one of the shelf's two kinds of JSON."""
    return (TEXT, *(name for name in constraints() if name.startswith("json_")))


def constraints() -> list[str]:
    return [entry.name for entry in registry.entries("sampling", "constrain")]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    include_usage: bool = param("a last chunk tells the usage", False)
    include_obfuscation: Any = refused("nothing is added to chunks", False)


@dataclass(frozen=True, kw_only=True)
class Structured:
    """vLLM's names. One of them."""

    json: dict[str, Any] | None = param("a JSON schema that the text follows")
    json_object: bool = param("the text is a JSON object", False)
    regex: str | None = param("a regular expression that all of the text matches", least=1)
    choice: tuple[str, ...] | None = param("the text is one of these", least=1, most=1024)
    grammar: str | None = param("a grammar that the text follows, in Lark's notation", least=1)

    def check(self, where: str) -> None:
        self.constraint(where)

    def constraint(self, where: str = "") -> Constraint:
        """The method and what it enforces."""
        given = dict(json_schema=self.json and json.dumps(self.json), json_object=self.json_object and "{}", regex=self.regex,
                     choice=self.choice and json.dumps(self.choice), grammar=self.grammar)
        if self.json == {}:
            given |= dict(json_schema="{}")
        found = [(name, text) for name, text in given.items() if text]
        if len(found) != 1:
            raise bad(f"{where} must hold one constraint, not {len(found)}", where or None)
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Lithe:
    """What only this server has."""

    method: str | None = param("a decoding method as `name:knob=value,...`, several slots joined by ` + `; `lithe methods` "
                               "lists them", least=1, most=500, shown="the server's")
    params: dict[str, bool | float | str] | None = param("the method's knobs by name, instead of within the spec", most=32)
    warps: tuple[str, ...] | None = param("more of the shelf sampling/warp, as specs", most=8)
    report: bool = param("tell what decoding cost and where tokens came from", False)
    priority: int = param("larger goes first", 0, low=-100, high=100)
    deadline: float | None = param("seconds after which the text ends where it is", low=0.001, high=86400.0)

    def check(self, where: str) -> None:
        if self.params and self.method is None:
            raise bad(f"{where}.params needs {where}.method", f"{where}.params")

    @property
    def spec(self) -> str | None:
        """The method as one text."""
        if not self.params or self.method is None:
            return self.method
        joined = ",".join(f"{key}={value:.12g}" if isinstance(value, float) else f"{key}={value}"
                          for key, value in self.params.items())
        return f"{self.method}{',' if ':' in self.method else ':'}{joined}"


@dataclass(frozen=True, kw_only=True)
class Part:
    type: str = param("what it is", MISSING, options=(TEXT,))
    text: str = param("the text", MISSING)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the answer may well be: it is guessed first, and costs nothing where it is right."""

    type: str = param("what it is", MISSING, options=("content",))
    content: str | tuple[Part, ...] = param("the text; parts are joined", MISSING)

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


@dataclass(frozen=True, kw_only=True)
class Shared:
    model: str = param("the model, or one of its adapters; /v1/models lists them", MISSING)
    max_tokens: int | None = param("most tokens to generate", low=1)
    temperature: float | None = param("0 always takes the likeliest token", low=0, high=2, shown="the model's, else 1")
    top_p: float | None = param("sample among the likeliest tokens that hold this mass", low=0, high=1,
                                shown="the model's, else 1")
    top_k: int | None = param("sample among the k likeliest; 0 or -1: all", low=-1, high=lambda facts: facts.vocab,
                              shown="the model's, else all")
    min_p: float | None = param("leave out what is less likely than this share of the likeliest", low=0, high=1)
    typical_p: float | None = param("sample among tokens about as surprising as expected, up to this mass", low=0, high=1)
    repetition_penalty: float | None = param("divides the logits of tokens seen", low=0.01, high=100)
    presence_penalty: float | None = param("taken from the logit of every token seen, the prompt included", low=-2, high=2)
    frequency_penalty: float | None = param("taken from a logit each time its token was seen", low=-2, high=2)
    logit_bias: dict[str, float] | None = param("added to the logits of tokens, by id", low=-100, high=100, most=1024,
                                                keys="^(0|[1-9][0-9]{0,8})$")
    seed: int | None = param("the same seed and request give the same text, whatever runs beside it", low=-(2**63),
                             high=2**63 - 1, shown="drawn")
    stop: str | tuple[str, ...] | None = param("the text ends before any of these", most=lambda facts: facts.stops)
    n: int = param("texts from the one prompt, by seed, seed + 1, ...", 1, low=1, high=lambda facts: facts.choices)
    stream: bool = param("send the text as it comes, as server-sent events", False)
    stream_options: StreamOptions | None = param("of a stream")
    ignore_eos: bool = param("go on behind the end of text", False)
    structured_outputs: Structured | None = param("constrain the text; needs the extra `json`")
    prediction: Prediction | None = param("what the text may well be; right or wrong, it changes no token")
    user: str | None = param("who asks; written to the log", most=256)
    lithe: Lithe | None = param("what only this server has")
    service_tier: Any = refused("there is one tier", "auto", "default")
    min_tokens: Any = refused("use ignore_eos for texts of a fixed length", 0)
    stop_token_ids: Any = refused("use stop", [])
    bad_words: Any = refused("use logit_bias", [])
    include_stop_str_in_output: Any = refused("the stop string is never part of the text", False)
    skip_special_tokens: Any = refused("special tokens are never part of the text", True)
    use_beam_search: Any = refused("there is no beam search", False)
    guided_json: Any = refused("use structured_outputs")
    guided_regex: Any = refused("use structured_outputs")
    guided_choice: Any = refused("use structured_outputs")
    guided_grammar: Any = refused("use structured_outputs")
    priority: Any = refused("use lithe.priority, where larger goes first", 0)

    @property
    def limit(self) -> int | None:
        """Most tokens to generate; None: what the context leaves."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    def constraint(self) -> Constraint:
        return self.structured_outputs.constraint() if self.structured_outputs else None

    def check(self, where: str) -> None:
        if self.stream_options is not None and not self.stream:
            raise bad("stream_options needs stream: true", "stream_options")
        if "" in self.stops:
            raise bad("stop holds an empty string", "stop")

"""The bodies that are posted: completions, chat, tokenize, detokenize."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from typing import Any

from lithe.serve.http._errors import bad
from lithe.serve.http._params import param, refused
from lithe.serve.http._shared import TEXT, Constraint, Part, Shared, formats, models

ROLES = ("system", "developer", "user", "assistant", "tool")
FUNCTION, NONE, REQUIRED = "function", "none", "required"


@dataclass(frozen=True, kw_only=True)
class Completion(Shared):
    """POST /v1/completions"""

    prompt: str | tuple[int, ...] | tuple[str, ...] | tuple[tuple[int, ...], ...] = param(
        "text or token ids to go on from, or a list of either", MISSING, low=0, high=lambda facts: facts.vocab - 1, least=1)
    max_tokens: int | None = param("most tokens to generate", 16, low=1)
    logprobs: int | None = param("log probabilities of the tokens and of so many likeliest", low=0, high=20)
    echo: bool = param("the text begins with the prompt", False)
    best_of: int | None = param("make so many texts and give the n likeliest by token; not with stream", low=1,
                                high=lambda facts: facts.choices, shown="n")
    suffix: Any = refused("no model here fills in the middle", "")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else list(self.prompt)  # type: ignore

    def check(self, where: str) -> None:
        super().check(where)
        if self.best_of is not None and self.best_of < self.n:
            raise bad(f"best_of is {self.best_of}, less than n, {self.n}", "best_of")
        if self.best_of not in (None, self.n) and self.stream:
            raise bad("best_of cannot be streamed: leave it out or set stream to false", "best_of")


@dataclass(frozen=True, kw_only=True)
class Called:
    name: str = param("the function's name", MISSING, most=64)
    arguments: str = param("its arguments as JSON", MISSING)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    id: str = param("of the call", MISSING, most=256)
    type: str = param("what it is", MISSING, options=(FUNCTION,))
    function: Called = param("what was called", MISSING)


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str = param("who speaks; developer is read as system", MISSING, options=ROLES)
    content: str | tuple[Part, ...] | None = param("what is said; parts are joined by line ends")
    name: str | None = param("of who speaks", most=64)
    tool_calls: tuple[ToolCall, ...] | None = param("what the assistant called", most=128)
    tool_call_id: str | None = param("the call that a tool answers", most=256)
    refusal: Any = refused("there are no refusals apart from the text")
    audio: Any = refused("models here read text")
    annotations: Any = refused("there are none", [])
    function_call: Any = refused("use tool_calls")

    def check(self, where: str) -> None:
        if self.content is None and not self.tool_calls:
            raise bad(f"{where}.content must be given", f"{where}.content", "missing_parameter")
        if self.tool_calls and self.role != "assistant":
            raise bad(f"{where}.tool_calls is for the assistant", f"{where}.tool_calls")

    @property
    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        content = "\n".join(part.text for part in self.content) if isinstance(self.content, tuple) else self.content
        said: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content or ""}
        said |= {key: value for key, value in (("name", self.name), ("tool_call_id", self.tool_call_id)) if value is not None}
        if self.tool_calls:
            said["tool_calls"] = [{"id": call.id, "type": call.type, "function": {"name": call.function.name,
                                   "arguments": _parsed(call.function.arguments)}} for call in self.tool_calls]
        return said


def _parsed(text: str) -> Any:
    """Arguments as an object, as templates want them; text that is none is left as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@dataclass(frozen=True, kw_only=True)
class JsonSchema:
    name: str = param("of the schema", MISSING, least=1, most=64)
    description: str | None = param("what it is for; not shown to the model")
    schema: dict[str, Any] = param("the schema", MISSING)
    strict: bool | None = param("schemas are always enforced, whatever this says")


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    type: str = param("free text, or JSON", MISSING, options=formats)
    json_schema: JsonSchema | None = param("the schema that the answer follows")

    def check(self, where: str) -> None:
        if (self.json_schema is not None) != (self.type not in (TEXT, self.constraints()[0])):
            raise bad(f"{where} of type {self.type} does not go with its schema given, or not given", where)

    def constraints(self) -> list[str]:
        return list(dict(json_object=1, json_schema=2))

    @property
    def constraint(self) -> Constraint:
        if self.type == TEXT:
            return None
        return self.type, "{}" if self.json_schema is None else json.dumps(self.json_schema.schema)


@dataclass(frozen=True, kw_only=True)
class Function:
    name: str = param("of the function", MISSING, least=1, most=64)
    description: str | None = param("what it does")
    parameters: dict[str, Any] | None = param("a JSON schema of its arguments")
    strict: bool | None = param("arguments always follow the schema, whatever this says")


@dataclass(frozen=True, kw_only=True)
class Tool:
    type: str = param("what it is", MISSING, options=(FUNCTION,))
    function: Function = param("the function", MISSING)


@dataclass(frozen=True, kw_only=True)
class Name:
    name: str = param("of the function", MISSING, most=64)


@dataclass(frozen=True, kw_only=True)
class Choice:
    type: str = param("what it is", MISSING, options=(FUNCTION,))
    function: Name = param("the function to call", MISSING)


@dataclass(frozen=True, kw_only=True)
class Chat(Shared):
    """POST /v1/chat/completions"""

    messages: tuple[Message, ...] = param("the conversation", MISSING, least=1, most=4096)
    max_tokens: int | None = param("most tokens to generate", low=1,
                                   shown="what the context leaves")
    max_completion_tokens: int | None = param("the same by its newer name", low=1)
    logprobs: bool = param("log probabilities of the tokens", False)
    top_logprobs: int | None = param("so many likeliest tokens in each place", low=0, high=20)
    response_format: ResponseFormat | None = param("what the answer is; JSON needs the extra `json`")
    tools: tuple[Tool, ...] | None = param("functions that can be called", most=128)
    tool_choice: str | Choice | None = param("none, required, or the function to call; auto is not offered, since each model "
                                             "writes its calls its own way", shown="none")
    chat_template_kwargs: dict[str, Any] | None = param("more variables for the model's chat template", most=32)
    add_generation_prompt: bool = param("the prompt ends where the assistant begins", True)
    metadata: dict[str, str] | None = param("written to the log", most=16)
    parallel_tool_calls: Any = refused("there is one call at a time", True, False)
    store: Any = refused("nothing is kept", False)
    functions: Any = refused("use tools")
    function_call: Any = refused("use tool_choice")
    chat_template: Any = refused("the model's own is used")
    continue_final_message: Any = refused("use /v1/completions", False)
    modalities: Any = refused("models here write text", ["text"])
    audio: Any = refused("models here write text")
    reasoning_effort: Any = refused("models here have no such setting; chat_template_kwargs reaches the template")
    verbosity: Any = refused("models here have no such setting")
    web_search_options: Any = refused("nothing here searches the web")
    prompt_cache_key: Any = refused("prompts that begin alike share their work without it")
    safety_identifier: Any = refused("use user")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def check(self, where: str) -> None:
        super().check(where)
        if self.top_logprobs is not None and not self.logprobs:
            raise bad("top_logprobs needs logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise bad("max_tokens and max_completion_tokens differ: give one", "max_tokens")
        if self.response_format and self.response_format.constraint and self.structured_outputs:
            raise bad("response_format and structured_outputs are both given: choose one", "structured_outputs")
        self._check_tools()

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) != len(names):
            raise bad("two tools have one name", "tools")
        wanted = self.tool_choice.function.name if isinstance(self.tool_choice, Choice) else self.tool_choice
        if isinstance(self.tool_choice, Choice) and wanted not in names:
            raise bad(f"tool_choice names {wanted!r:.80}, which is not among tools", "tool_choice")
        if isinstance(self.tool_choice, str) and wanted not in (NONE, REQUIRED):
            raise bad(f"tool_choice {wanted!r:.80} is not supported: use none, required or a named function", "tool_choice",
                      "unsupported_parameter")
        if names and wanted is None:
            raise bad("tools need tool_choice: auto, its default elsewhere, is not supported; use none, required or a named "
                      "function", "tool_choice", "unsupported_parameter")
        if wanted == REQUIRED and not names:
            raise bad("tool_choice is required, but there are no tools", "tool_choice")
        if names and wanted != NONE and (self.structured_outputs or (self.response_format and self.response_format.constraint)):
            raise bad("a call cannot be constrained twice: leave out tools or the format", "tools")

    def constraint(self) -> Constraint:
        return (self.response_format and self.response_format.constraint) or super().constraint()


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """POST /tokenize"""

    model: str | None = param("one of /v1/models", options=models)
    prompt: str | None = param("the text")
    messages: tuple[Message, ...] | None = param("a conversation, put into the model's chat template", least=1, most=4096)
    add_special_tokens: bool = param("what the tokenizer puts in front of a text comes first", True)
    add_generation_prompt: bool = param("of a conversation: the prompt ends where the assistant begins", True)
    return_token_strs: bool = param("give the tokens as text, too", False)

    def check(self, where: str) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise bad("give prompt or messages, one of them", "prompt")


@dataclass(frozen=True, kw_only=True)
class Detokenize:
    """POST /detokenize"""

    model: str | None = param("one of /v1/models", options=models)
    tokens: tuple[int, ...] = param("token ids", MISSING, low=0, high=lambda facts: facts.vocab - 1, most=1 << 20)

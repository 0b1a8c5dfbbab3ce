"""Chat templates, which come with models and are not trusted: a sandbox where each thing a template makes is paid for.

Jinja's own sandbox keeps templates away from Python's insides. What it leaves open is time and memory, so every string,
list, loop step and call is charged to a budget, and only known filters and methods exist.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lithe.errors import FormatError, UsageError

MAX_SOURCE, MAX_WORK, MAX_SECONDS = 400_000, 64_000_000, 5.0  # characters, characters handled in one rendering, wall time
STEP, ITEM, BODY = 64, 32, 2000  # what a loop step or call, an element of a list and a macro's run are charged, in characters
FILTERS = ("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "format", "groupby", "int", "items",
           "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe",
           "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper")
METHODS = {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "lower", "upper", "title",
           "capitalize", "replace", "join", "find", "rfind", "index", "count", "removeprefix", "removesuffix", "isdigit",
           "isnumeric", "isalpha", "isalnum", "isspace", "isupper", "islower", "partition", "rpartition", "items", "keys",
           "values", "get"}


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.left: float = MAX_WORK
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, amount: float) -> None:
        self.left -= amount
        if self.left < 0:
            raise SecurityError(f"it makes more than {MAX_WORK} characters")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it runs longer than {MAX_SECONDS:g} s")

    def weigh(self, value):
        """Charge for all that a value holds, shared parts as often as they occur, and give the value back."""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set):
                stack += item
            elif isinstance(item, int) and item.bit_length() > 4096:
                raise SecurityError("it makes a number of more than 4096 bits")
            self.spend(ITEM + (len(item) if isinstance(item, str) else 0))
        return value


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja with a budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], finalize=self._finalize)
        known = {name: self._charged(self.filters[name]) for name in FILTERS}
        own = {"tojson": _tojson, "_weighed": lambda x: x, "_concat": lambda parts: "".join(map(str, parts))}
        self.filters = {**known, **{name: self._charged(f) for name, f in own.items()}, "replace": self._replace,
                        "join": self._join, "indent": self._indent, "_paced": self._paced}
        self.globals = {"range": safe_range, "namespace": Namespace, "dict": dict, "raise_exception": _raise_exception,
                        "strftime_now": lambda form: datetime.now().strftime(form[:64])}

    def _parse(self, source, name, filename):
        self.length = len(source)
        return _Guard().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj, attr, value) -> bool:
        free = isinstance(obj, LoopContext | Namespace)
        return super().is_safe_attribute(obj, attr, value) and (free or attr in METHODS)

    def unsafe_undefined(self, obj, attribute):
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value):
        return None  # str.format is refused like any method that is not listed

    def call_binop(self, context, operator, left, right):
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "**" and (abs(left) > 2**64 or abs(right) > 64):
            raise SecurityError("it raises to a power that is too large")
        if operator == "*" and not isinstance(left, int | float):
            left, right = right, left
        if operator == "*" and not isinstance(right, int | float):
            before = self.budget.left
            self.budget.weigh(right)
            self.budget.spend((before - self.budget.left) * max(left, 0))
        return self.budget.weigh(super().call_binop(context, operator, left, right))

    def call(self, context, obj, *args, **kwargs):  # type: ignore[override]
        self.budget.spend(STEP + (BODY + self.length if isinstance(obj, Macro | LoopContext) else 0))
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ in ("replace", "join"):
            return self._replace(owner, *args) if obj.__name__ == "replace" else self._join(args[0], owner)
        return self.budget.weigh(super().call(context, obj, *args, **kwargs))

    def _charged(self, function: Callable) -> Callable:
        @functools.wraps(function)  # keeps Jinja's marks for what the filter wants passed
        def charged(*args, **kwargs):
            self.budget.spend(STEP)
            if function.__name__ == "do_format":
                _check_format(args[0])
            return self.budget.weigh(function(*args, **kwargs))

        return charged

    def _finalize(self, value):
        self.budget.weigh(value)
        return value

    def _paced(self, items: Iterable, body: int) -> Iterator:
        for item in items:
            self.budget.spend(STEP + body)
            yield item

    def _replace(self, text: object, old: str, new: str, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self.budget.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _join(self, items: Iterable, between: object = "", attribute: str | None = None) -> str:
        parts = [str(item if attribute is None else self.getattr(item, attribute)) for item in self._paced(items, 0)]
        self.budget.spend(sum(map(len, parts)) + len(parts) * len(str(between)))
        return str(between).join(parts)

    def _indent(self, text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        space = " " * min(width, 256) if isinstance(width, int) else width[:256]
        lines = str(text).splitlines(keepends=True)
        self.budget.spend(len(str(text)) + len(lines) * len(space))
        return "".join(space + line if (i or first) and (blank or line.strip()) else line for i, line in enumerate(lines))


class _Guard(NodeTransformer):
    """Sends what a template builds without a call through filters that charge for it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = nodes.Filter(node.iter, "_paced", [nodes.Const(text)], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":  # names that a tuple is unpacked into
            return node
        return nodes.Filter(node, "_weighed", [], [], None, None, lineno=node.lineno)

    visit_Dict = visit_Tuple = visit_List

    def visit_Include(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("it includes, imports or extends another template")

    visit_Import = visit_FromImport = visit_Extends = visit_Include


class Generation(Extension):
    """{% generation %} marks what the model wrote, for training; it changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A model's chat template. Raises FormatError where it is broken or hostile."""

    def __init__(self, source: str):
        if len(source) > MAX_SOURCE:
            raise FormatError(f"the chat template has {len(source)} characters, more than {MAX_SOURCE}")
        self.sandbox, self.lock = Sandbox(), threading.Lock()
        self.template = self._run(lambda: self.sandbox.from_string(source))

    def render(self, messages: list[dict], **variables) -> str:
        """The prompt for a conversation. Raises UsageError for messages that are not plain JSON, FormatError as above."""
        try:
            plain = json.loads(json.dumps({"messages": messages, **variables}))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"chat messages and variables must be plain JSON values: {error}") from error
        return self._run(lambda: self.template.render(plain))

    def _run(self, work: Callable):
        with self.lock:
            self.sandbox.budget = Budget()
            try:
                return work()
            except Exception as error:  # a template is foreign code: whatever it raises is its own fault
                why = f"line {error.lineno}: {error}" if hasattr(error, "lineno") else str(error) or type(error).__name__
                raise FormatError(f"the chat template was refused: {why}") from error


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _check_format(form: object) -> None:
    if re.search(r"\d{4,}|\*", str(form)):
        raise SecurityError("it formats to a width that is too large")


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers has it: Jinja's own escapes HTML."""
    if (len(indent) if isinstance(indent, str) else indent or 0) > 16:
        raise SecurityError("it indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

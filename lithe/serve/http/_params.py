"""Request bodies as dataclasses: one declaration of a parameter drives its check, its schema and its line in the docs.

A field's annotation is its JSON type, its metadata says range and meaning. null is the same as not given.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any

from lithe.registry import near
from lithe.serve.http._errors import ApiError, bad


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What of a server bounds its parameters."""

    models: tuple[str, ...]
    vocab: int
    context: int
    choices: int = 64  # most texts of one request
    stops: int = 4


Bound = float | Callable[[Facts], float] | None
Meta = dict[str, Any]


def param(meaning: str, default: Any = None, *, low: Bound = None, high: Bound = None, least: int | None = None,
          most: Bound = None, options: Any = None, keys: str | None = None, shown: str | None = None) -> Any:
    """A parameter. low, high: of its numbers. least, most: of its
    length; of a string only where it cannot be an array. options: the words it may be, or a function that
    gives them. keys: a pattern of an object's keys. shown: the default in words. default MISSING: it must be given.
    """
    meta = dict(meaning=meaning, low=low, high=high, least=least, most=most, options=options, keys=keys, shown=shown)
    return dataclasses.field(default=default, metadata=meta)


def refused(why: str, *neutral: Any) -> Any:
    """A parameter that others know and this server does not have; it may be null or a value that changes nothing."""
    return dataclasses.field(default=None, metadata=dict(refused=why, neutral=neutral))


def read(kind: type, raw: Any, facts: Facts, where: str = "") -> Any:
    """A body as its dataclass. Raises ApiError that names the first parameter at fault."""
    if not isinstance(raw, dict):
        raise bad(f"{where or 'the body'} must be an object, not {_said(raw)}", where or None, "invalid_type")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            path, served = _join(where, key), [name for name, f in fields.items() if "refused" not in f.metadata]
            raise bad(f"there is no parameter {path!r:.120}{near(key, served)}", path[:120], "unknown_parameter")
    values = {}
    for name, field in fields.items():
        path, value = _join(where, name), raw.get(name)
        if "refused" in field.metadata:
            if value is not None and not any(type(value) is type(n) and value == n for n in field.metadata["neutral"]):
                raise bad(f"{path} is not supported: {field.metadata['refused']}", path, "unsupported_parameter")
        elif value is not None:
            values[name] = _value(_hints(kind)[name], value, dict(field.metadata), facts, path)
        elif field.default is MISSING:
            raise bad(f"{path} must be given", path, "missing_parameter")
    made = kind(**values)
    if hasattr(made, "check"):
        made.check(where)
    return made


def _value(hint: Any, value: Any, meta: Meta, facts: Facts, where: str) -> Any:
    kinds = _kinds(hint)
    kind = next((kind for kind in kinds if _fits(kind, value)), None)
    if kind is None and isinstance(value, list):  # an array whose first entry is none of those: say so of the entry
        kind = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
    if kind is None:
        raise bad(f"{where} must be {' or '.join(map(_name, kinds))}, not {_said(value)}", where, "invalid_type")
    if dataclasses.is_dataclass(kind):
        return read(typing.cast(type, kind), value, facts, where)
    if kind in (int, float):
        return _number(kind, value, meta, facts, where)
    if isinstance(value, list | dict) or (kind is str and len(kinds) == 1):
        _check_length(value, meta, facts, where)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_value(inner, item, meta | _INNER, facts, f"{where}[{i}]") for i, item in enumerate(value))
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return {key: _value(inner, item, meta | _INNER, facts, f"{where}.{key}"[:120]) for key, item in value.items()}
    if kind is str and (options := _options(meta, facts)) is not None and value not in options:
        raise bad(f"{where} is {value!r:.80}{near(value, options)}", where)
    return value


_INNER = {"least": None, "most": None}  # lengths are of the outer array


def _number(kind: type, value: Any, meta: Meta, facts: Facts, where: str) -> Any:
    try:
        value = kind(value)
    except OverflowError:
        raise bad(f"{where} is too large a number", where) from None
    low, high = _bound(meta.get("low"), facts), _bound(meta.get("high"), facts)
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        raise bad(f"{where} must be {_range(low, high)}, not {value!s:.40}", where)
    return value


def _check_length(value: Any, meta: Meta, facts: Facts, where: str) -> None:
    least, most = meta.get("least"), _bound(meta.get("most"), facts)
    if (least is not None and len(value) < least) or (most is not None and len(value) > most):
        raise bad(f"{where} must have {_range(least, most)} {'characters' if isinstance(value, str) else 'entries'}, not "
                  f"{len(value)}", where)


def _fits(kind: Any, value: Any) -> bool:
    """By JSON type alone; an array by its first entry."""
    if kind is Any:
        return True
    if kind is int:
        return type(value) is int or (type(value) is float and value.is_integer())
    if kind is float:
        return type(value) in (int, float)
    if kind in (bool, str):
        return type(value) is kind
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and (not value or _any_fits(typing.get_args(kind)[0], value[0]))
    return isinstance(value, dict)


def _any_fits(hint: Any, value: Any) -> bool:
    return any(_fits(kind, value) for kind in _kinds(hint))


def _kinds(hint: Any) -> tuple[Any, ...]:
    args = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(kind for kind in args if kind is not type(None))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _bound(bound: Bound, facts: Facts) -> float | None:
    return bound(facts) if callable(bound) else bound


def _options(meta: Meta, facts: Facts) -> tuple[str, ...] | None:
    found = meta.get("options")
    return found(facts) if callable(found) else found


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low}" if high is None else f"at most {high}"
    return f"from {low} to {high}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", Any: "anything"}


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"array of {' or '.join(_many(_name(one)) for one in _kinds(typing.get_args(kind)[0]))}"
    return NAMES.get(kind, "object")


def _many(name: str) -> str:
    return name.replace("array", "arrays", 1) if name.startswith("array") else f"{name}s"


def _said(value: Any) -> str:
    return {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}.get(
        type(value), "an object")


def schema(kind: type, facts: Facts) -> dict[str, Any]:
    """The JSON schema of a body."""
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        meta = dict(field.metadata)
        if "refused" in meta:
            properties[field.name] = {"enum": [None, *meta["neutral"]], "description": f"Not supported: {meta['refused']}."}
            continue
        made = _schema(_hints(kind)[field.name], meta, facts)
        if field.default is MISSING:
            required.append(field.name)
        else:
            made = {"anyOf": [*made.pop("anyOf", [made] if made else [{}]), {"type": "null"}]}
        properties[field.name] = made | {"description": meta["meaning"]}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, meta: Meta, facts: Facts) -> dict[str, Any]:
    kinds = _kinds(hint)
    made = [_schema_of(kind, meta if len(kinds) == 1 or kind is not str else meta | _INNER, facts) for kind in kinds]
    return made[0] if len(made) == 1 else {"anyOf": made}


def _schema_of(kind: Any, meta: Meta, facts: Facts) -> dict[str, Any]:
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind):
        return schema(typing.cast(type, kind), facts)
    least, most = meta.get("least"), _bound(meta.get("most"), facts)
    if typing.get_origin(kind) is tuple:
        made = {"type": "array", "items": _schema(typing.get_args(kind)[0], meta | _INNER, facts)}
        return made | _given(minItems=least, maxItems=most)
    if typing.get_origin(kind) is dict:
        names = {"pattern": meta["keys"]} if meta.get("keys") else None
        inner = _schema(typing.get_args(kind)[1], meta | _INNER, facts)
        return {"type": "object", "additionalProperties": inner} | _given(propertyNames=names, maxProperties=most)
    made = {"type": NAMES[kind]}
    if kind in (int, float):
        return made | _given(minimum=_bound(meta.get("low"), facts), maximum=_bound(meta.get("high"), facts))
    options = _options(meta, facts)
    if kind is str:
        made |= _given(minLength=least, maxLength=most, enum=None if options is None else list(options))
    return made


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def lines(kind: type, facts: Facts, where: str = "") -> list[tuple[str, str, str, str]]:
    """A parameter a line, nested ones behind their own: name, type and range, default, meaning."""
    found = []
    for field in dataclasses.fields(kind):
        meta, path = field.metadata, _join(where, field.name)
        if "refused" in meta:
            continue
        kinds = _kinds(_hints(kind)[field.name])
        low, high, most = (_bound(meta.get(key), facts) for key in ("low", "high", "most"))
        limits = _range(low, high) if (low, high) != (None, None) else f"at most {most}" if most is not None else ""
        text = " or ".join(map(_name, kinds)) + (f", {limits}" if limits else "")
        default = "required" if field.default is MISSING else "" if field.default is None else str(field.default).lower()
        found.append((path, text, meta["shown"] or default, meta["meaning"]))
        inner = [typing.get_args(k)[0] if typing.get_origin(k) is tuple else k for k in kinds]
        for nested in (k for joined in inner for k in _kinds(joined)):
            if dataclasses.is_dataclass(nested):
                found += lines(typing.cast(type, nested), facts, path + ("[]" if nested not in kinds else ""))
    return found


def unknown(kind: type) -> list[tuple[str, str]]:
    """The refused parameters and why."""
    return [(field.name, field.metadata["refused"]) for field in dataclasses.fields(kind) if "refused" in field.metadata]


__all__ = ["ApiError", "Facts", "lines", "param", "read", "refused", "schema", "unknown"]

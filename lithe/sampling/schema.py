"""JSON Schema as it can be enforced while text is written: what cannot be is refused by name, what is loose is made exact.

llguidance refuses most of what it does not know. Where it says yes to more than the standard does (found by the standard's own
test suite and by trying each keyword) the schema is rewritten here, to something stricter where need be: formats of days and
hosts, patterns, whole numbers of so many bits.
"""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import unquote

from lithe.errors import UsageError
from lithe.sampling.ecma import rewritten

ONE = ("additionalProperties", "items", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames",
       "unevaluatedItems", "unevaluatedProperties")
MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
WHOLE = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
CANNOT = ("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames", "dependencies",
          "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$dynamicAnchor",
          "$recursiveRef", "$recursiveAnchor", "x-guidance", "extends", "disallow", "divisibleBy")
IDLE = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}  # values at which they ask for nothing
DEEPEST = 200

_DAY = (r"(?:(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
        r"(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
        r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)")
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"  # leaps: none
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]?[A-Za-z0-9]|[A-Za-z0-9-]{2}[A-Za-z0-9]|" \
         r"[A-Za-z0-9-](?:[A-Za-z0-9][A-Za-z0-9-]|-[A-Za-z0-9])[A-Za-z0-9-]{0,58}[A-Za-z0-9])?"  # punycode, xn--, is left out
EXACT = {"date": _DAY, "time": _TIME, "date-time": f"{_DAY}T{_TIME}", "hostname": rf"{_LABEL}(?:\.{_LABEL})*"}
BITS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}
WIDE = ("float", "double")  # of numbers: any of JSON's will do


def enforceable(text: str) -> dict[str, Any]:
    """The schema, rewritten so that what llguidance lets through is valid. Raises UsageError that names keyword and place."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"the schema is not JSON: {problem}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise UsageError(f"a schema is an object that something can satisfy, not {text[:60]}")
    walk = _Walk(schema)
    walk.visit(schema, "#")
    return schema


class _Walk:
    """Goes over every schema there is, those that only a reference leads to included, and changes them in place."""

    def __init__(self, root: Any):
        self.root, self.seen = root, set[int]()

    def visit(self, schema: Any, where: str) -> None:
        if isinstance(schema, bool) or id(schema) in self.seen:
            return
        if not isinstance(schema, dict):
            raise UsageError(f"schema, at {where}: a schema is an object, true or false, not {json.dumps(schema)[:60]}")
        if where.count("/") > DEEPEST:
            raise UsageError(f"schema, at {where[:80]}...: nested too deeply")
        self.seen.add(id(schema))
        for key, idle in IDLE.items():
            if schema.get(key) is idle:
                del schema[key]
        if bad := next((key for key in CANNOT if key in schema), None):
            raise UsageError(f"schema, at {where}: the keyword {bad!r} cannot be enforced while text is written; leave it out "
                             "and check the result, or say the same with other keywords")
        _check_values(schema, where)
        _check_texts([*map(schema.get, ("const", "enum", "required")), list(schema.get("properties", ()))], where)
        self._below(schema, where)
        _tighten(schema, where)

    def _below(self, schema: dict[str, Any], where: str) -> None:
        for key in ONE:
            if key in schema:
                several = schema[key] if key == "items" and isinstance(schema[key], list) else [schema[key]]
                for each in several:
                    self.visit(each, f"{where}/{key}")
        for key in MANY:
            for i, each in enumerate(schema.get(key, ())):
                self.visit(each, f"{where}/{key}/{i}")
        for key in NAMED:
            for name, each in schema.get(key, {}).items():
                self.visit(each, f"{where}/{key}/{name}")
        target = schema.get("$ref")
        if isinstance(target, str) and target.startswith("#/"):
            self.visit(self._at(target), target)

    def _at(self, pointer: str) -> Any:
        found = self.root
        for part in pointer[2:].split("/"):
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UsageError(f"schema: there is nothing at {pointer}, which a $ref names") from None
        return found


def _check_values(schema: dict[str, Any], where: str) -> None:
    """Keywords hold what the standard says: one of another type would be passed over without a word."""
    kinds: list[tuple[tuple[str, ...], Any, str]] = [
        (MANY, lambda v: isinstance(v, list) and v, "a list that is not empty"),
        (NAMED, lambda v: isinstance(v, dict), "an object"),
        (("required",), lambda v: isinstance(v, list) and all(isinstance(each, str) for each in v), "a list of names"),
        (WHOLE, lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 and v == int(v), "a whole number"),
        (("minimum", "maximum", "multipleOf"), lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "a number"),
        (("pattern", "format", "$ref"), lambda v: isinstance(v, str), "a text"),
        (("enum",), lambda v: isinstance(v, list), "a list"),
    ]
    for keys, fits, kind in kinds:
        for key in keys:
            if key in schema and not fits(schema[key]):
                raise UsageError(f"schema, at {where}: {key!r} must be {kind}, not {json.dumps(schema[key])[:60]}")
            if key in WHOLE and key in schema:
                schema[key] = int(schema[key])


def _check_texts(value: Any, where: str) -> None:
    """What must be written letter by letter can be: characters that take a \\u escape cannot, and would be left out unsaid."""
    if isinstance(value, str):
        if odd := next((letter for letter in value if _unwritable(letter)), None):
            raise UsageError(f"schema, at {where}: the character {odd!r} in {value!r:.60} cannot be written without a \\u "
                             "escape, which is never used")
    elif isinstance(value, (list, dict)):
        for each in value if isinstance(value, list) else [*value, *value.values()]:
            _check_texts(each, where)


def _unwritable(letter: str) -> bool:
    return (letter < " " and letter not in "\n\r\t\b\f") or "\ud800" <= letter <= "\udfff"


def _tighten(schema: dict[str, Any], where: str) -> None:
    """Make exact what the library takes too loosely. Raises UsageError where there is no way to."""
    if "patternProperties" in schema:
        schema["patternProperties"] = {rewritten(key): each for key, each in schema["patternProperties"].items()}
    if "pattern" in schema:
        schema["pattern"] = rewritten(schema["pattern"])
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if schema.get("minProperties", 0) > len(schema.get("required", ())) + 1 and not closed:
        raise UsageError(f"schema, at {where}: the keyword 'minProperties' cannot be enforced where names are free, since one "
                         "may be written twice; list the names, with additionalProperties false")
    form, kinds = schema.get("format"), schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if form in EXACT:
        del schema["format"]
        _also(schema, {"pattern": f"^(?:{EXACT[form]})$"} | ({"maxLength": 253} if form == "hostname" else {}))
    elif form is not None and kinds and "string" not in kinds:
        if form in BITS and "integer" in kinds and "number" not in kinds:
            del schema["format"]
            low, high = BITS[form]
            _also(schema, {"minimum": low, "maximum": high})
        elif form not in WIDE:
            raise UsageError(f"schema, at {where}: the format {form!r} cannot be enforced for {' or '.join(kinds)}")


def _also(schema: dict[str, Any], more: dict[str, Any]) -> None:
    """Ask for more of the same value; what is asked for already stands beside it."""
    if clash := {key: more[key] for key in more if key in schema}:
        schema["allOf"] = [*copy.copy(schema.get("allOf", [])), clash]
    schema.update({key: value for key, value in more.items() if key not in clash})

"""Keyword by keyword: what a schema lets through is valid, and what cannot be enforced is refused by name."""

import json

import pytest

from lithe.bench.json import _sets
from lithe.bench.json._judge import Judge
from lithe.contracts.constrain import accepts, small_tokenizer
from lithe.errors import LitheError, UsageError
from lithe.sampling.constraint import compiled
from lithe.sampling.ecma import rewritten

# A schema, and texts at which the library as it comes, or a reader of its dialect, has been seen to say yes too often.
TRAPS = (
    ({"properties": {"foo": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
     ['{"foo":1,"\\u0066oo":"x"}', '{"\\u0066oo":"x"}', '{"foo":1,"foo":"x"}']),
    ({"properties": {"fé": {"type": "integer"}}, "additionalProperties": {"type": "string"}}, ['{"f\\u00e9":"x"}']),
    ({"properties": {'q"': {"type": "integer"}}, "additionalProperties": {"type": "string"}}, ['{"q\\u0022":"x"}']),
    ({"type": "object", "minProperties": 1}, ["{}"]),
    ({"type": "string", "maxLength": 1}, ['"ab"', '"\\n\\n"']),
    ({"type": "string", "minLength": 2}, ['"\\n"', '"😀"']),
    ({"type": "string", "pattern": "^.$"}, ['"\\r"', '"\u2028"', '"\\n"']),
    ({"type": "string", "pattern": r"^\S$"}, ['"\ufeff"', '"\u00a0"', '"\u0085"']),
    ({"type": "string", "pattern": r"^[^\s]$"}, ['"\ufeff"', '"\u0085"']),
    ({"type": "string", "pattern": r"^\W$"}, ['"é"', '"_"']),
    ({"type": "string", "pattern": r"^[^\w]$"}, ['"é"']),
    ({"type": "string", "pattern": r"^\D$"}, ['"3"', '"٣"']),
    ({"type": "string", "pattern": "^[+--a]$"}, ["\"b\"", "\"*\""]),
    ({"type": "string", "pattern": "^[[:alpha:]]$"}, ['"x"']),
    ({"type": "string", "pattern": "^[a-z&&[^b]]$"}, ['"c"']),
    ({"type": "string", "pattern": "^a{,2}$"}, ['"aa"', '"a"']),
    ({"type": "string", "format": "date"}, ['"2021-02-29"', '"2100-02-29"', '"0000-01-01"']),
    ({"type": "string", "format": "date", "pattern": "^2"}, ['"1999-01-01"', '"2021-02-29"']),
    ({"type": "string", "format": "date-time"}, ['"1998-12-31T23:58:60Z"', '"2021-02-29T00:00:00Z"']),
    ({"type": "string", "format": "hostname"}, ['"xn--X"', '"a--"', f'"{"a." * 130}a"', f'"{"a" * 64}"']),
    ({"type": "integer", "format": "int32"}, ["2147483648", "-2147483649"]),
    ({"type": ["integer", "null"], "format": "uint32"}, ["-1", "4294967296"]),
    ({"minimum": 3}, ["2", "-5", "2.5", "1e0"]),
    ({"$ref": "#/elsewhere/day", "elsewhere": {"day": {"type": "string", "format": "date"}}}, ['"2021-02-29"']),
    ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": True, "b": True}}, ["{}", '{"c":1}']),
)

REFUSED = {
    "uniqueItems": {"type": "array", "uniqueItems": True}, "not": {"not": {"type": "string"}}, "if": {"if": {"type": "string"}},
    "contains": {"contains": {"type": "string"}}, "propertyNames": {"propertyNames": {"maxLength": 3}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}}, "dependencies": {"dependencies": {"a": ["b"]}},
    "unevaluatedProperties": {"unevaluatedProperties": False}, "unevaluatedItems": {"unevaluatedItems": False},
    "dependentSchemas": {"dependentSchemas": {"a": {"required": ["b"]}}}, "$dynamicRef": {"$dynamicRef": "#a"},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "string"}, "minProperties": {"type": "object", "minProperties": 2},
    "oneOf": {"oneOf": [{"type": "number"}, {"type": "integer"}]}, "nonsense": {"type": "string", "format": "nonsense"},
    "int9": {"type": "integer", "format": "int9"}, "required": {"properties": {"a": {"required": True}}},
    "look-around": {"type": "string", "pattern": "^(?=a)"}, "word boundaries": {"type": "string", "pattern": r"\ba\b"},
    "\\u escape": {"const": "a\0b"}, "example.com": {"$ref": "http://example.com/s.json"}, "properties": {"properties": [1]},
    "minLength": {"minLength": "3"}, "nothing at": {"$ref": "#/$defs/none"}, "strnig": {"type": "strnig"},
}


def program(schema, spaces="any"):
    return compiled(small_tokenizer(), f"json_schema:spaces={spaces}", schema)


@pytest.mark.parametrize("number", range(len(TRAPS)))
def test_traps_are_not_let_through(number):
    schema, texts = TRAPS[number]
    for text in texts:
        assert not accepts(program(schema), small_tokenizer().encode(text)), f"{text} under {schema}"


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(word):
    for schema in (REFUSED[word], {"properties": {"deep": {"anyOf": [{"type": "null"}, REFUSED[word]]}}}):
        with pytest.raises(UsageError) as caught:
            program(schema)
        if not word.startswith(("example", "oneOf", "strnig", "nothing")) or schema is REFUSED[word]:
            assert word in str(caught.value)


@pytest.mark.parametrize("case", _sets.read(_sets.SHIPPED), ids=lambda case: case.name)
def test_own_schemas(case):
    """No invalid instance is let through; whatever is enforced takes every valid one."""
    try:
        made = program(case.schema, "none")
    except LitheError:
        assert case.name in ("unique", "conditional")
        return
    for value, valid in case.tests:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert accepts(made, small_tokenizer().encode(text)) == valid, text


def test_the_official_suite(data):
    """Of the standard's 2,225 cases no invalid one is let through."""
    path = data / "jsonschema_testsuite" / "draft2020-12.zip"
    if not path.is_file():
        pytest.skip("the official test suite is not there")
    judged = 0
    for case in _sets.read(path):
        try:
            made = program(case.schema)
        except LitheError:
            continue
        for value, valid in case.tests:
            judged += 1
            taken = accepts(made, small_tokenizer().encode(json.dumps(value, ensure_ascii=False)))
            assert valid or not taken, f"{case.name}: {value!r} under {case.schema}"
    assert judged > 1000


@pytest.mark.parametrize(("pattern", "same"), [
    ("^[a-z]+$", "^[a-z]+$"), (r"\/", r"\x{2F}"), ("a{2,3}?", "a{2,3}?"), ("{", r"\x{7B}"),
    (r"[\s\S]", None), ("[^]", r"[\x{0}-\x{10FFFF}]"),
    (r"\u00e9", r"\x{E9}"), (r"\cA", r"\x{1}"), ("(?<day>a)", "(?:a)"), (r"[a\-z]", r"[a\x{2D}z]"), ("[a-]", r"[a\x{2D}]"),
    (r"\ud83d\ude00", r"\x{1F600}"), (r"[\b]", r"[\x{8}]"), (r"\p{L}", r"\p{L}"),
])
def test_patterns_are_read_as_ecma_has_them(pattern, same):
    assert same is None or rewritten(pattern) == same
    program({"type": "string", "pattern": pattern})


@pytest.mark.parametrize("pattern", ["(?=a)", r"\1", r"\A", "[", "[]", "[z-a]", r"\ud83d", "(?i)a", "\\"])
def test_patterns_without_a_counterpart_are_refused(pattern):
    with pytest.raises(UsageError, match="pattern"):
        program({"type": "string", "pattern": pattern})


def test_the_judge_is_exact_where_floats_are_not():
    assert Judge({"type": "number", "multipleOf": 0.1})("0.3") is True
    assert Judge({"type": "number", "multipleOf": 0.1})("0.35") is False
    assert Judge({"type": "string", "format": "date"})('"2021-02-29"') is False
    assert Judge({"type": "string"})("{") is False

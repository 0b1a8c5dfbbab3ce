"""Schemathesis on our own schema: what it allows is answered as it says, what it forbids is refused."""

import copy
import json
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.serve.http_live import bare, call, live

load_all_checks()
# What depends on several parameters at once, on the vocabulary or on a method is refused though the schema allows each.
LEFT_OUT = [CHECKS.get_one("positive_data_acceptance")]
OURS = json.loads(call(bare(), "GET", "/openapi.json")[2])
TOGETHER = 5  # parameters of a body at once: cases of all of them take minutes to draw
QUIET = list(HealthCheck)


def cuts() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Path, method and optional parameters: every parameter of the schema is in one cut."""
    for path, item in OURS["paths"].items():
        for method, operation in item.items():
            body = body_of(operation)
            free = sorted(set(body.get("properties", {})) - set(body.get("required", ()))) if body else []
            for at in range(0, max(1, len(free)), TOGETHER):
                yield path, method, tuple(free[at : at + TOGETHER])


def body_of(operation: dict) -> dict:
    return operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})


def cut(path: str, method: str, names: tuple[str, ...]):
    """The operation with these parameters and those it requires."""
    document = copy.deepcopy(OURS)
    document["paths"] = {path: {method: document["paths"][path][method]}}
    body = body_of(document["paths"][path][method])
    if "properties" in body:
        kept = {*names, *body.get("required", ())}
        body["properties"] = {name: value for name, value in body["properties"].items() if name in kept}
    return schemathesis.openapi.from_dict(document)[path][method]


CUTS = list(cuts())


def small(case) -> None:
    """Texts are few and short, whatever is right or wrong with the rest."""
    if isinstance(case.body, dict) and case.path.startswith("/v1/"):
        for name, most in (("max_tokens", 2), ("max_completion_tokens", 2), ("n", 2), ("best_of", 2)):
            if type(case.body.get(name, most)) is int and (name in case.body or name == "max_tokens"):
                case.body[name] = min(case.body.get(name, most), most)


def hold(where, many: int) -> None:
    """Cases that the schema allows, and cases that it forbids, are answered as it says."""
    operation = cut(*where)

    @given(data=st.data())
    @settings(max_examples=many, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
    def ask(data, mode):
        case = data.draw(operation.as_strategy(generation_mode=mode))
        small(case)
        case.call_and_validate(base_url=live().url, excluded_checks=LEFT_OUT, timeout=60)

    ask(mode=GenerationMode.POSITIVE)
    if body_of(OURS["paths"][where[0]][where[1]]):
        ask(mode=GenerationMode.NEGATIVE)


@pytest.mark.parametrize("where", CUTS, ids=lambda where: "-".join([where[1], where[0].strip("/"), *where[2][:1]]))
def test_what_the_schema_says(where):
    hold(where, 2)


@pytest.mark.slow
@pytest.mark.parametrize("where", CUTS, ids=lambda where: "-".join([where[1], where[0].strip("/"), *where[2][:1]]))
def test_what_the_schema_says_at_length(where):
    hold(where, 8)


def test_the_schema_is_openapi_and_says_what_is_served():
    document = OURS
    assert document["openapi"].startswith("3.1") and set(document["paths"]) == {route.path.replace(":path", "")
                                                                             for route in bare().router.routes}
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["required"] == ["model", "messages"] and not chat["additionalProperties"]
    assert {"minimum": 0, "maximum": 2, "type": "number"} in chat["properties"]["temperature"]["anyOf"]


def test_the_docs_show_the_parameters_that_are_checked_and_what_was_measured():
    from tools import serving

    page = serving.PAGE.read_text(encoding="utf-8")
    assert serving.written(page) == page, "run python tools/serving.py"
    assert "| `temperature` | number, from 0 to 2 |" in page and "`suffix`" in page
    figures = serving.ENGINE.read_text(encoding="utf-8")
    assert serving.figures(figures) == figures, "run python tools/serving.py"
    assert "| between tokens while" in figures

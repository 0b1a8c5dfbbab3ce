"""Schemathesis on our own schema: what it allows is answered as it says, what it forbids is refused."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.serve.http_live import bare, call, live

load_all_checks()
# What depends on several parameters at once, on the vocabulary or on a method is refused though the schema allows each.
LEFT_OUT = [CHECKS.get_one("positive_data_acceptance")]
OURS = schemathesis.openapi.from_dict(json.loads(call(bare(), "GET", "/openapi.json")[2]))
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


def small(case) -> None:
    """Texts are few and short, whatever is right or wrong with the rest."""
    if isinstance(case.body, dict) and case.path.startswith("/v1/"):
        for name, most in (("max_tokens", 2), ("max_completion_tokens", 2), ("n", 2), ("best_of", 2)):
            if type(case.body.get(name, most)) is int and (name in case.body or name == "max_tokens"):
                case.body[name] = min(case.body.get(name, most), most)


@pytest.mark.slow
@OURS.exclude(path_regex="completions$").parametrize()  # whose schemas take long to draw from
@settings(max_examples=6, deadline=None, suppress_health_check=QUIET)
def test_what_the_schema_says(case):
    small(case)
    case.call_and_validate(base_url=live().url, excluded_checks=LEFT_OUT, timeout=60)


@pytest.mark.slow
@OURS.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
def test_what_the_schema_says_at_length(case):
    small(case)
    case.call_and_validate(base_url=live().url, excluded_checks=LEFT_OUT, timeout=60)


def test_the_schema_is_openapi_and_says_what_is_served():
    document = OURS.raw_schema
    assert document["openapi"].startswith("3.1") and set(document["paths"]) == {route.path.replace(":path", "")
                                                                             for route in bare().router.routes}
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["required"] == ["model", "messages"] and not chat["additionalProperties"]
    assert {"minimum": 0, "maximum": 2, "type": "number"} in chat["properties"]["temperature"]["anyOf"]


def test_the_docs_show_the_parameters_that_are_checked():
    from tools import serving

    page = serving.PAGE.read_text(encoding="utf-8")
    assert serving.written(page) == page, "run python tools/serving.py"
    assert "| `temperature` | number, from 0 to 2 |" in page and "`suffix`" in page

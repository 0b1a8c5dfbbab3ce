"""Requests nobody would send: every one is answered in the API's shape, none as a 500, and none hangs."""

import asyncio
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from lithe.serve.http import _bodies, _params
from tests.serve.http_live import acall, bare, call

TALK = [{"role": "user", "content": "Hello"}]
GOOD = {
    "/v1/completions": [
        {"model": "tiny", "prompt": "a", "max_tokens": 1},
        {"model": "tiny", "prompt": [1, 2], "max_tokens": 2, "n": 2},
        {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 1, "stream": True, "echo": True},
    ],
    "/v1/chat/completions": [
        {"model": "tiny", "messages": TALK, "max_tokens": 1},
        {
            "model": "tiny",
            "messages": TALK,
            "max_tokens": 2,
            "stream": True,
            "stop": ["x"],
            "stream_options": {"include_usage": True},
            "logit_bias": {"5": 1},
            "seed": 1,
        },
    ],
    "/tokenize": [{"prompt": "a"}, {"messages": TALK}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
KINDS = {
    "/v1/completions": _bodies.Completion,
    "/v1/chat/completions": _bodies.Chat,
    "/tokenize": _bodies.Tokenize,
    "/detokenize": _bodies.Detokenize,
}
FACTS = _params.Facts(models=("tiny",), vocab=4096, context=1024)
NAMES = {path: [*_params.schema(kind, FACTS)["properties"], "nonsense"] for path, kind in KINDS.items()}
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1.5,
    1e308,
    -1e308,
    10**30,
    2**63,
    2**64,
    -(2**63) - 1,
    "",
    "a",
    "\0",
    "🙂" * 40,
    "x" * 9000,
    "tiny",
    "user",
    "none",
    "auto",
    "required",
    "text",
    "json_object",
    [],
    [[]],
    [None],
    [0] * 50,
    ["a"] * 70,
    [[1], ["a"]],
    {},
    {"a": 1},
    {"type": "text"},
    {"type": "function", "function": {"name": "f"}},
    {"": {}},
    [{"role": "tool", "content": "x"}],
    {"method": "prompt_lookup"},
    {"method": "temperature"},
    {"report": True},
    {"warps": ["top_k:top_k=3"]},
    {"warps": ["a.py"]},
    {"type": "content", "content": "b"},
    {"regex": "("},
    {"json": {"type": "array"}},
    {"choice": ["a"]},
    {"5": 100, "7": -100},
]
CHANGES, WEIGHTS = ("set", "drop", "nest", "cut", "flip", "splice"), (12, 3, 3, 1, 1, 1)


def mutated(dice: random.Random) -> tuple[str, bytes]:
    """A path, and a body that is nearly right."""
    path = dice.choice(list(GOOD))
    body = json.loads(json.dumps(dice.choice(GOOD[path])))
    changes = dice.choices(CHANGES, WEIGHTS, k=dice.randint(0, 3))
    for change in changes:
        if change == "set":
            body[dice.choice(NAMES[path])] = dice.choice(ODD)
        elif change == "drop" and body:
            del body[dice.choice(list(body))]
        elif change == "nest":
            body[dice.choice(NAMES[path])] = {dice.choice(NAMES[path]): dice.choice(ODD)}
    if "chat" in path and "max_tokens" not in body:
        body["max_tokens"] = 3  # else what the context leaves
    data = json.dumps(body).encode()
    for change in changes:
        at = dice.randrange(len(data) + 1)
        if change == "cut":
            data = data[:at]
        elif change == "flip":
            data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        elif change == "splice":
            data = data[:at] + data[dice.randrange(len(data) + 1) :]
    return path, data


def check(status: int, headers: dict, data: bytes) -> None:
    assert status in (200, 400, 404, 413, 429), (status, data[:500])
    if headers[b"content-type"].startswith(b"text/event-stream"):
        assert data.endswith(b"data: [DONE]\n\n") and b'"engine_error"' not in data
    elif status != 200:
        error = json.loads(data)["error"]
        assert error["message"] and {"type", "param", "code"} < error.keys()
    else:
        json.loads(data)


async def storm(app, number: int, seed: int) -> dict[int, int]:
    """So many mutated requests, thirty-two at a time; how many ended with which status."""
    dice, counts = random.Random(seed), dict[int, int]()

    async def worker(many: int) -> None:
        for _ in range(many):
            path, data = mutated(dice)
            try:
                status, headers, answer = await asyncio.wait_for(acall(app, "POST", path, data), 60)
                check(status, headers, answer)
            except BaseException as problem:
                raise AssertionError(f"{path} {data[:2000]!r}") from problem
            counts[status] = counts.get(status, 0) + 1

    await asyncio.gather(*[worker(number // 32) for _ in range(32)])
    return counts


def test_mutated_requests():
    counts = asyncio.run(storm(bare(), 640, seed=0))
    assert counts[200] > 50 and counts[400] > 100, counts


@pytest.mark.slow
def test_a_hundred_thousand_mutated_requests():
    counts = asyncio.run(storm(bare(), 100_000, seed=1))
    assert sum(counts.values()) == 100_000, counts
    print(counts)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(path=st.sampled_from(list(GOOD)), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json(path, data):
    body = data.draw(JSONS | st.dictionaries(st.sampled_from(NAMES[path]), JSONS, max_size=4))
    if isinstance(body, dict) and data.draw(st.booleans()):
        body = GOOD[path][0] | body | {"max_tokens": 1} if "v1" in path else GOOD[path][0] | body
    check(*call(bare(), "POST", path, body))


@given(data=st.binary(max_size=64), kind=st.sampled_from(["application/json", "text/plain", ""]))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes(data, kind):
    status, _, _ = call(bare(), "POST", "/v1/completions", data, {"content-type": kind})
    assert status in (400, 415)

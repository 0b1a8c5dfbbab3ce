"""What cannot be is told: by status, code and the parameter's name, and never as a 500."""

import copy
import json

import pytest

from lithe import registry
from lithe.serve import http, page
from lithe.serve.engine import Engine
from lithe.serve.http import _bodies, _params
from tests.serve.http_live import bare, call, tiny

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
TALK = [{"role": "user", "content": "Hello"}]
FACTS = _params.Facts(models=("tiny",), vocab=4096, context=1024)


def told(path, **body):
    status, _, data = call(bare(), "POST", path, {"model": "tiny"} | body)
    return status, json.loads(data)["error"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("temprature", {"temprature": 1}),
        ("temperature", {"temperature": 2.5}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": True}),
        ("top_p", {"top_p": -0.1}),
        ("n", {"n": 0}),
        ("n", {"n": 10**30}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("seed", {"seed": 2**63}),
        ("stop", {"stop": ["a"] * 5}),
        ("stop", {"stop": ""}),
        ("stop[1]", {"stop": ["a", 1]}),
        ("stream", {"stream": 1}),
        ("stream_options", {"stream_options": {}}),
        ("stream_options.x", {"stream": True, "stream_options": {"x": 1}}),
        ("suffix", {"suffix": "end"}),
        ("best_of", {"best_of": 1, "n": 2}),
        ("best_of", {"best_of": 2, "stream": True}),
        ("logprobs", {"logprobs": 21}),
        ("logit_bias", {"logit_bias": {"9999": 1}}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("logit_bias.5", {"logit_bias": {"5": 101}}),
        ("min_tokens", {"min_tokens": 1}),
        ("guided_json", {"guided_json": {}}),
        ("priority", {"priority": 1}),
        ("lithe.methods", {"lithe": {"methods": "x"}}),
        ("lithe.method", {"lithe": {"method": "x"}}),
        ("lithe.method", {"lithe": {"method": "/tmp/x.py"}}),
        ("lithe.method", {"lithe": {"method": "x.py:a=1"}}),
        ("lithe.method", {"lithe": {"method": "draft_model:model=zoo:tiny"}}),
        ("lithe.method", {"lithe": {"method": "lora"}}),
        ("lithe.method", {"lithe": {"method": "min_p:min_p=0.1"}}),
        ("lithe.method", {"lithe": {"method": "rest:corpus=python"}}),
        ("lithe.params", {"lithe": {"params": {"tokens": 1}}}),
        ("lithe.warps[0]", {"lithe": {"warps": ["prompt_lookup"]}}),
        ("structured_outputs", {"structured_outputs": {}}),
        ("prediction.type", {"prediction": {"type": "x", "content": "a"}}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": {}}),
        ("prompt[1]", {"prompt": [1, "a"]}),
        ("prompt[0]", {"prompt": [4096]}),
        ("prompt[1][0]", {"prompt": [[1], [-1]]}),
        ("prompt", {"prompt": ["a"] * 65}),
        ("n", {"prompt": ["a"] * 2, "n": 40}),
        ("model", {"model": 3}),
    ],
)
def test_a_bad_parameter_is_named(param, body):
    status, error = told(PLAIN, **{"prompt": "a"} | body)
    assert status == 400 and error["param"] == param and error["type"] == "invalid_request_error" and error["message"], error


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {"messages": []}),
        ("messages", {"messages": "Hello"}),
        ("messages[0]", {"messages": ["Hello"]}),
        ("messages[0].role", {"messages": [{"role": "wizard", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        (
            "messages[0].content[0].image_url",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        ),
        ("top_logprobs", {"top_logprobs": 2}),
        ("response_format.type", {"response_format": {"type": "yaml"}}),
        ("tool_choice", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}),
        ("store", {"store": True}),
        ("audio", {"audio": {}}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"thinking": True}}),
        ("modalities", {"modalities": ["audio"]}),
        ("metadata.a", {"metadata": {"a": 1}}),
    ],
)
def test_a_bad_parameter_of_chat_is_named(param, body):
    status, error = told(CHAT, **{"messages": TALK} | body)
    assert status == 400 and error["param"] == param, error


def test_neutral_values_of_what_is_refused_are_taken():
    status, _, _ = call(
        bare(),
        "POST",
        CHAT,
        {
            "model": "tiny",
            "messages": TALK,
            "max_tokens": 1,
            "store": False,
            "tools": None,
            "service_tier": "auto",
            "parallel_tool_calls": True,
            "modalities": ["text"],
        },
    )
    assert status == 200


def test_what_does_not_fit_the_context():
    status, error = told(PLAIN, prompt="dog " * 2000)
    assert status == 400 and error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    status, error = told(CHAT, messages=TALK, max_tokens=tiny().config.context)
    assert status == 400 and error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b"[" * 100000,
        b'{"model": "tiny", "model": "tiny", "prompt": "a"}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b'{"model": "tiny\\ud800"}',
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "a", "\\ud800": 1}',
    ],
)
def test_bodies_that_are_no_json(data):
    status, _, answer = call(bare(), "POST", PLAIN, data)
    assert status == 400 and json.loads(answer)["error"]["message"]


def test_statuses():
    app = bare()
    assert call(app, "POST", PLAIN, {"model": "other", "prompt": "a"})[0] == 404
    assert call(app, "POST", PLAIN, b"{}", {"content-type": "text/plain"})[0] == 415
    assert call(app, "POST", PLAIN, b"{}", {"content-encoding": "gzip"})[0] == 415
    status, headers, _ = call(app, "GET", PLAIN)
    assert status == 405 and headers[b"allow"] == b"POST"
    status, _, data = call(app, "GET", "/v1/embeddings")
    assert status == 404 and "/v1/completions" in json.loads(data)["error"]["message"]
    assert call(app, "POST", PLAIN, b" " * (4 << 20) + b"{}")[0] == 413
    assert call(app, "POST", PLAIN, b"{}", {"content-length": str(10**12)})[0] == 413


def test_keys_and_host_names():
    app = bare(keys=("secret", "other"), hosts=("localhost",))
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "Bearer \xff"}):
        status, headers, data = call(app, "POST", PLAIN, body, shown)
        assert status == 401 and json.loads(data)["error"]["code"] == "invalid_api_key" and b"www-authenticate" in headers
    assert call(app, "POST", PLAIN, body, {"authorization": "Bearer other"})[0] == 200
    assert call(app, "GET", "/health", headers={"host": "evil.example"})[0] == 200
    shown = {"authorization": "Bearer secret", "host": "evil.example:8000"}
    assert call(app, "POST", PLAIN, body, shown)[0] == 403
    assert call(app, "POST", PLAIN, body, shown | {"host": "localhost:8000"})[0] == 200


def test_tokens_go_there_and_back():
    app, text = bare(), "Once upon a time, é🙂"
    ids = json.loads(call(app, "POST", "/tokenize", {"prompt": text, "return_token_strs": True})[2])
    assert ids["tokens"] == tiny().tokenizer.encode(text) and ids["count"] == len(ids["tokens"]) == len(ids["token_strs"])
    back = json.loads(call(app, "POST", "/detokenize", {"tokens": ids["tokens"]})[2])
    assert back == {"prompt": text}
    asked = json.loads(call(app, "POST", "/tokenize", {"messages": TALK})[2])
    assert asked["tokens"] == tiny().tokenizer.encode(tiny().tokenizer.chat(TALK), bos=False)
    assert call(app, "POST", "/tokenize", {})[0] == 400


def test_every_parameter_is_checked_against_its_own_schema():
    """The one declaration says the same to whoever reads the schema and to whoever sends a value."""
    for kind in (_bodies.Chat, _bodies.Completion, _bodies.Tokenize, _bodies.Detokenize):
        for name, made in _params.schema(kind, FACTS)["properties"].items():
            numbers = [one for one in made.get("anyOf", [made]) if one.get("type") in ("integer", "number")]
            for one in numbers:
                for bound, step in (("minimum", -1), ("maximum", 1)):
                    if bound in one:
                        with pytest.raises(_params.ApiError) as problem:
                            _params.read(kind, _needed(kind) | {name: one[bound] + step}, FACTS)
                        assert problem.value.param == name


def _needed(kind):
    return {"model": "tiny"} | (
        {"messages": TALK}
        if kind in (_bodies.Chat, _bodies.Tokenize)
        else {"tokens": [1]}
        if kind is _bodies.Detokenize
        else {"prompt": "a"}
    )


def test_a_model_without_a_tokenizer_takes_ids_and_says_what_it_cannot():
    model = copy.copy(tiny())
    model.tokenizer = None
    engine = Engine(model, sequences=2, budget=32)
    service = http.Service(engine, http.Settings(name="tiny", log=None))
    app = http.App(service, page.routes(service))
    engine.start()
    ask = lambda **body: call(app, "POST", PLAIN, {"model": "tiny", "prompt": [1, 2], "max_tokens": 2} | body)
    assert ask()[0] == 200
    for name, value in {"echo": True, "logprobs": 1, "stop": "x", "lithe": {"report": True}, "prompt": "a"}.items():
        status, _, data = ask(**{name: value})
        error = json.loads(data)["error"]
        assert status == 400 and "no tokenizer" in error["message"], data
        assert error["param"] == {"lithe": "lithe.report", "prompt": None}.get(name, name)
    status, _, data = call(app, "GET", "/catalogue.json")
    assert status == 200 and json.loads(data)["server"]["chat"] is False
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0
    engine.close()


@pytest.mark.skipif(not registry.entries("sampling", "constrain"), reason="the shelf sampling/constrain has no methods")
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_given_up_within_a_text_is_told_as_what_it_is(stream):
    """Ever more ways to read a text: llguidance's own limit is met some twenty letters on, and others go on."""
    ways = " | ".join(" ".join(["e"] * count) for count in range(2, 21))
    grammar = f'start: e\ne: {ways} | "a" | "b"'
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 200, "structured_outputs": {"grammar": grammar}, "stream": stream}
    asked |= {"temperature": 0, "logit_bias": {"0": -100}}  # no end
    status, _, data = call(bare(), "POST", PLAIN, asked)
    line = data if not stream else next(part for part in data.split(b"\n\n") if b'"error"' in part).removeprefix(b"data: ")
    error = json.loads(line)["error"]
    assert status == (200 if stream else 400)  # a stream had begun
    assert error["code"] == "unsupported" and error["type"] == "invalid_request_error"
    assert "llguidance gave up" in error["message"]
    assert call(bare(), "POST", PLAIN, {"model": "tiny", "prompt": "a", "max_tokens": 2})[0] == 200

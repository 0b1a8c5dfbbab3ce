"""A diffusion model behind the engine and the API: canvases that come and go, and what cannot be asked of them."""

import asyncio
import copy
import functools
import json

import openai
import pytest
import torch

import lithe
from lithe.contracts.diffuse import small_model
from lithe.errors import UnsupportedError, UsageError
from lithe.loops import generate
from lithe.sampling.law import Law
from lithe.serve import page
from lithe.serve.engine import Engine
from lithe.serve.request import Request
from lithe.tune.rack import Rack
from tests.serve.http_live import Live, acall

METHODS = (None, "confident:floor=0.6", "steady:tokens=3 + equal_blocks:size=4", "confident:floor=0.5 + prefix_cache",
           "freedave")
PROBLEM, ANSWER = "reverse : ant bear cat deer _ _ =", "deer cat bear ant"


def alone(model, request, **settings):
    """The tokens of a request that nothing runs beside."""
    found = generate(model, list(request.prompt), method=request.method or (), max_tokens=request.max_tokens,
                     seed=request.seed, **settings)
    return [token for step in found for token in step.tokens]


def told(ticket):
    return [token for event in ticket.events() for token in event.tokens]


@pytest.mark.parametrize(("attends", "block"), [("full", 0), ("blocks", 4)])
def test_texts_are_those_of_generate_whoever_comes_and_goes(attends, block):
    model = small_model(attends, block)
    engine, warm = Engine(model, sequences=3), {"temperature": 0.8}
    methods = METHODS if attends == "full" else METHODS[:2]
    asked = [Request(prompt=tuple(range(3 + i, 9 + 2 * i)), max_tokens=6 + 3 * i, seed=i, method=methods[i % len(methods)],
                     law=Law.of(**warm) if i % 2 else Law()) for i in range(7)]
    tickets = []
    for request in asked:  # one after the other, into what runs already
        tickets.append(engine.submit(request))
        engine.step()
    gone = engine.submit(Request(prompt=(5, 6), max_tokens=40))
    engine.step()
    gone.cancel()
    while engine.busy:
        engine.step()
    for i, (ticket, request) in enumerate(zip(tickets, asked, strict=True)):
        assert told(ticket) == alone(model, request, **(warm if i % 2 else {}))
    assert engine.stats()["ended"] == {"length": 7, "cancelled": 1} and engine.counts["rows"] > 0
    for desk in engine.desks.held.values():
        assert not desk.plan.reader.stores and len(desk.plan.runs) <= 3


def test_what_is_cancelled_gives_its_places_back_and_others_go_on():
    model = small_model("full", 0)
    engine, cached = Engine(model), "confident:floor=0.9 + prefix_cache"
    asked = [Request(prompt=(3, 4, 5 + i), max_tokens=30, method=cached) for i in range(2)]
    gone, stays = [engine.submit(request) for request in asked]
    for _ in range(3):
        engine.step()
    reader = engine.desk(cached).plan.reader
    assert len(reader.stores) == 2
    gone.cancel()
    engine.step()
    assert len(reader.stores) == 1
    while engine.busy:
        engine.step()
    assert told(stays) == alone(model, asked[1]) and not reader.stores


def test_what_a_canvas_cannot_have_is_said_before_it_is_taken():
    model = small_model("full", 0)
    for settings in ({"budget": 8}, {"memory": 1 << 20}, {"schedule": "sarathi"}):
        with pytest.raises(UsageError, match="diffusion model"):
            Engine(model, **settings)
    engine, prompt = Engine(model), (5, 6, 7)
    refused = [dict(logprobs=0), dict(prediction=(5,)), dict(constraint="regex", constraint_text="a"),
               dict(law=Law.of(repetition_penalty=1.2)), dict(method="s2d2"), dict(method="s2d2:drafts=1")]
    for more in refused:
        with pytest.raises((UnsupportedError, UsageError)):
            engine.submit(Request(prompt=prompt, **more))
    with pytest.raises(UsageError, match="mask"):
        engine.submit(Request(prompt=(5, 31, 7)))
    assert not engine.busy


def test_an_adapter_is_of_its_own_canvases_alone():
    model, dice = copy.deepcopy(small_model("full", 0)), torch.Generator().manual_seed(0)
    request = Request(prompt=(3, 4, 5), max_tokens=12)
    plain = alone(model, request)
    rack = Rack.of(model)
    with torch.no_grad():
        for weight in rack.make("lora:rank=2", name="a").parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=dice, dtype=weight.dtype)
    changed = alone(model, request)
    rack.use(None)
    engine = Engine(model)
    both = [engine.submit(Request(prompt=request.prompt, max_tokens=12, adapter=name)) for name in ("a", None)]
    while engine.busy:
        engine.step()
    assert [told(ticket) for ticket in both] == [changed, plain] and changed != plain


@functools.cache
def words():
    return lithe.load("zoo:tiny-diffusion")


@pytest.fixture(scope="module")
def server():
    made = Live(Engine(words(), sequences=8), name="tiny-diffusion")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


ASKED = dict(model="tiny-diffusion", max_tokens=8, temperature=0)


def test_the_official_client_gets_answers_whole_and_streamed(client):
    made = client.completions.create(prompt=PROBLEM, **ASKED)
    assert made.choices[0].text.strip() == ANSWER and made.choices[0].finish_reason == "stop"
    assert made.usage.completion_tokens == 5  # four words and the end
    chunks = list(client.completions.create(prompt=PROBLEM, stream=True, **ASKED))
    assert "".join(c.choices[0].text for c in chunks) == made.choices[0].text and chunks[-1].choices[0].finish_reason == "stop"
    said = client.chat.completions.create(messages=[{"role": "user", "content": PROBLEM}], **ASKED)
    assert said.choices[0].message.content.strip() == ANSWER
    pair = client.completions.create(prompt=[PROBLEM, "copy : pig owl cat _ _ _ ="], n=2, seed=1, **ASKED)
    assert [c.text.strip() for c in pair.choices] == [ANSWER] * 2 + ["pig owl cat"] * 2
    stopped = client.completions.create(prompt=PROBLEM, stop=["bear"], **ASKED).choices[0]
    assert stopped.text.split() == ["deer", "cat"] and stopped.finish_reason == "stop"


def test_a_method_is_of_its_request_and_tells_its_cost(client):
    cost = {}
    for method in ("steady:tokens=1", "confident:floor=0.5", "confident"):
        params = {"floor": 0.7} if method == "confident" else {}
        asked = {"lithe": {"method": method, "report": True} | ({"params": params} if params else {})}
        chunks = list(client.completions.create(prompt=PROBLEM, stream=True, extra_body=asked, **ASKED))
        assert "".join(c.choices[0].text for c in chunks if c.choices).strip() == ANSWER
        cost[method] = chunks[-1].model_extra["lithe"]
        assert cost[method]["drafted"] == 0 and sum(cost[method]["sources"].values()) == 5
    assert cost["steady:tokens=1"]["passes"] == 8 > cost["confident:floor=0.5"]["passes"]
    assert cost["confident"]["method"] == "confident:floor=0.7" and cost["confident"]["rows"] > 0


@pytest.mark.parametrize(("param", "body"), [
    ("logprobs", {"logprobs": 1}), ("best_of", {"best_of": 2}),
    ("prediction", {"prediction": {"type": "content", "content": "a"}}),
    ("structured_outputs", {"structured_outputs": {"choice": ["ant"]}}), ("presence_penalty", {"presence_penalty": 1}),
    ("repetition_penalty", {"repetition_penalty": 1.2}), ("lithe.method", {"lithe": {"method": "prompt_lookup"}}),
    ("lithe.method", {"lithe": {"method": "learn2pd:heads=/tmp"}}), ("suffix", {"suffix": "ant"}),
    ("prompt", {"prompt": "Once upon a time"})])
def test_what_reads_from_left_to_right_is_a_400_by_name(server, param, body):
    asked = {"model": "tiny-diffusion", "prompt": PROBLEM} | body
    status, _, data = asyncio.run(acall(server.app, "POST", "/v1/completions", asked))
    error = json.loads(data)["error"]
    assert status == 400 and error["param"] == param, error


def test_formats_of_a_chat_are_refused_by_name(server):
    talk = {"model": "tiny-diffusion", "messages": [{"role": "user", "content": PROBLEM}]}
    for param, body in (("response_format", {"response_format": {"type": "json_object"}}), ("logprobs", {"logprobs": True})):
        status, _, data = asyncio.run(acall(server.app, "POST", "/v1/chat/completions", talk | body))
        assert status == 400 and json.loads(data)["error"]["param"] == param


def test_health_and_metrics_tell_of_canvases(server, client):
    client.completions.create(prompt=PROBLEM, **ASKED)
    status, _, data = asyncio.run(acall(server.app, "GET", "/metrics"))
    found = dict(line.rsplit(" ", 1) for line in data.decode().splitlines() if not line.startswith("#"))
    value = lambda name: float(next(v for key, v in found.items() if key.startswith(f"lithe:{name}{{")))
    assert status == 200 and value("engine_turns_total") >= 8 and value("generation_tokens_total") >= 5
    assert value("num_requests_running") == 0 and not any("kv_cache" in key for key in found)  # no pages are told of
    assert asyncio.run(acall(server.app, "GET", "/health"))[0] == 200


def test_a_client_that_leaves_ends_its_canvas(server, client):
    stream = client.completions.create(prompt=PROBLEM, stream=True, **ASKED | {"max_tokens": 400})
    next(iter(stream))
    stream.close()
    assert server.idle()
    assert server.service.engine.stats()["ended"].get("cancelled", 0) >= 1


def test_the_page_offers_what_fills_canvases(server):
    route = next(route for route in page.routes(server.service) if route.path == "/catalogue.json")
    told = json.loads(asyncio.run(route.endpoint(None)).body)
    assert told["server"]["fills"] and any(m["room"] == "diffuse" and m["shelf"] == "unmask" for m in told["methods"])

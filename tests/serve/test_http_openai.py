"""The official client against a live server: what it asks for is what it gets, whole and streamed."""

import asyncio

import openai
import pytest
import torch

import lithe
from lithe import registry
from lithe.serve.engine import Engine
from lithe.tune.rack import Rack
from tests.serve.http_live import STORY, Live, live, tiny

TALK = [{"role": "user", "content": "Write a story about a cat"}]
COMMON = dict(model="tiny", max_tokens=16, temperature=0)
JSON = bool(registry.entries("sampling", "constrain"))


@pytest.fixture(scope="module")
def client():
    with openai.OpenAI(base_url=live().url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def plain(prompt, model=None, **settings) -> str:
    settings = {"max_tokens": 16, "temperature": 0.0} | settings
    return "".join(step.text for step in lithe.generate(model or tiny(), prompt, **settings))


def chat_ids() -> list[int]:
    tokenizer = tiny().tokenizer
    return tokenizer.encode(tokenizer.chat(TALK), bos=False)


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == tiny().config.context
    with pytest.raises(openai.NotFoundError) as problem:
        client.models.retrieve("mini")
    assert problem.value.code == "model_not_found"


def test_texts_are_those_of_generate(client):
    made = client.completions.create(prompt=STORY, **COMMON)
    assert made.choices[0].text == plain(STORY) and made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 16 and made.usage.prompt_tokens == len(tiny().tokenizer.encode(STORY))
    said = client.chat.completions.create(messages=TALK, **COMMON)
    assert said.choices[0].message.content == plain(chat_ids()) and said.choices[0].message.role == "assistant"
    sampled = client.completions.create(prompt=STORY, seed=7, **COMMON | {"temperature": 0.9, "top_p": 0.9})
    assert sampled.choices[0].text == plain(STORY, seed=7, temperature=0.9, top_p=0.9)


def test_a_stream_is_the_whole_text_in_pieces(client):
    chunks = list(client.completions.create(prompt=STORY, stream=True, **COMMON))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain(STORY)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length" and all(c.usage is None for c in chunks)
    chunks = list(client.chat.completions.create(messages=TALK, stream=True, stream_options={"include_usage": True}, **COMMON))
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and not first.choices[0].delta.content
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == plain(chat_ids())
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None
    assert not usage.choices and usage.usage.completion_tokens == 16


def test_lists_of_prompts_and_several_texts(client):
    prompts = [STORY, "The cat sat on"]
    made = client.completions.create(prompt=prompts, **COMMON)
    assert [c.text for c in made.choices] == [plain(p) for p in prompts] and [c.index for c in made.choices] == [0, 1]
    ids = tiny().tokenizer.encode(STORY)
    assert client.completions.create(prompt=ids, **COMMON).choices[0].text == plain(STORY)
    made = client.completions.create(prompt=[ids, ids], n=2, seed=3, **COMMON | {"temperature": 1.0})
    wanted = [plain(STORY, seed=seed, temperature=1.0) for seed in (3, 4)]
    assert [c.text for c in made.choices] == wanted * 2 and made.usage.prompt_tokens == 2 * len(ids)
    assert wanted[0] != wanted[1]


def test_seeds_stops_and_echo(client):
    sampled = COMMON | {"temperature": 1.0}
    one, two = (client.completions.create(prompt=STORY, **sampled).choices[0].text for _ in range(2))
    assert one != two  # no seed: another text each time
    full = plain(STORY)
    word = full.split()[3]
    made = client.completions.create(prompt=STORY, stop=[word], echo=True, **COMMON).choices[0]
    assert made.text == STORY + full[: full.index(word)] and made.finish_reason == "stop"
    pieces = [c.choices[0].text for c in client.completions.create(prompt=STORY, stop=word, echo=True, stream=True, **COMMON)]
    assert "".join(pieces) == made.text and pieces[0] == STORY


def test_log_probabilities(client):
    said = client.chat.completions.create(messages=TALK, logprobs=True, top_logprobs=3, **COMMON).choices[0]
    found = said.logprobs.content
    assert b"".join(bytes(one.bytes) for one in found).decode() == said.message.content and len(found) == 16
    for one in found:  # greedy takes the likeliest, whose probability it tells
        assert len(one.top_logprobs) == 3 and one.logprob == one.top_logprobs[0].logprob <= 0
    chunks = client.chat.completions.create(messages=TALK, logprobs=True, top_logprobs=3, stream=True, **COMMON)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in found]
    made = client.completions.create(prompt=STORY, logprobs=2, echo=True, **COMMON).choices[0]
    ids = tiny().tokenizer.encode(STORY)
    assert len(made.logprobs.tokens) == len(ids) + 16 and made.logprobs.token_logprobs[0] is None
    assert "".join(made.logprobs.tokens) == made.text
    for token, offset in zip(made.logprobs.tokens, made.logprobs.text_offset, strict=True):
        assert made.text[offset:].startswith(token)


def test_best_of_gives_the_likeliest(client):
    asked = dict(model="tiny", prompt=STORY, max_tokens=8, temperature=1.0, seed=5, logprobs=0)
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
    every = client.completions.create(n=4, **asked).choices
    best = client.completions.create(n=1, best_of=4, **asked).choices
    assert len(best) == 1 and best[0].text == max(every, key=mean).text


def test_penalties_and_biases_change_the_text(client):
    token = tiny().tokenizer.encode(" dog", bos=False)[0]
    made = client.completions.create(prompt=STORY, logit_bias={str(token): 100}, **COMMON).choices[0].text
    assert set(made.split()) == {"dog"}
    usual, penalised = (client.completions.create(prompt="dog dog dog dog", frequency_penalty=p, **COMMON).choices[0].text
                        for p in (0, 2))
    assert usual != penalised == plain("dog dog dog dog", frequency_penalty=2.0)


def test_a_method_keeps_the_text_and_tells_its_cost(client):
    prompt, asked = "one two three one two three one two", {"lithe": {"method": "prompt_lookup", "params": {"tokens": 4},
                                                                   "report": True}}
    made = client.completions.create(prompt=prompt, extra_body=asked, **COMMON | {"max_tokens": 24})
    assert made.choices[0].text == plain(prompt, max_tokens=24)
    told = made.model_extra["lithe"]
    assert told["passes"] < 24 and sum(told["sources"].values()) == 24 and told["method"] == "prompt_lookup:tokens=4"
    traced = made.choices[0].model_extra["lithe"]
    assert "".join(traced["pieces"]) == made.choices[0].text and len(traced["tokens"]) == len(traced["sources"]) == 24
    chunks = list(client.completions.create(prompt=prompt, extra_body=asked, stream=True, **COMMON))
    assert chunks[-1].model_extra["lithe"]["passes"] < 16


def test_a_prediction_is_a_free_guess(client):
    full = plain(chat_ids(), max_tokens=24)
    asked = COMMON | {"max_tokens": 24}
    made = client.chat.completions.create(messages=TALK, prediction={"type": "content", "content": full},
                                          extra_body={"lithe": {"report": True}}, **asked)
    details = made.usage.completion_tokens_details
    assert made.choices[0].message.content == full and details.accepted_prediction_tokens > 12
    assert made.model_extra["lithe"]["passes"] < 12
    wrong = client.chat.completions.create(messages=TALK, prediction={"type": "content", "content": "xyzzy " * 9}, **asked)
    assert wrong.choices[0].message.content == full
    assert wrong.usage.completion_tokens_details.rejected_prediction_tokens > 0
    said = client.chat.completions.create(messages=TALK, **asked).usage.completion_tokens_details
    assert said.accepted_prediction_tokens is None  # told only where a prediction was sent


@pytest.mark.skipif(not JSON, reason="the shelf sampling/constrain has no methods")
def test_formats_and_calls(client):
    import json

    pytest.importorskip("llguidance")
    asked = COMMON | {"max_tokens": 60}
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["age"],
              "additionalProperties": False}
    shaped = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    said = client.chat.completions.create(messages=TALK, response_format=shaped, **asked).choices[0]
    assert 1 <= json.loads(said.message.content)["age"] <= 99
    picked = client.completions.create(prompt=STORY, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **asked)
    assert picked.choices[0].text in ("yes", "no") and picked.choices[0].finish_reason == "stop"
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    forced = dict(messages=TALK, tools=[tool], tool_choice={"type": "function", "function": {"name": "look_up"}}, **asked)
    made = client.chat.completions.create(**forced).choices[0]
    assert made.finish_reason == "tool_calls" and made.message.content is None
    arguments = made.message.tool_calls[0].function.arguments
    assert made.message.tool_calls[0].function.name == "look_up" and 1 <= json.loads(arguments)["age"] <= 99
    deltas = [c.choices[0].delta for c in client.chat.completions.create(stream=True, **forced)]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in calls) == arguments and calls[0].function.name == "look_up"
    other = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}}
    made = client.chat.completions.create(messages=TALK, tools=[tool, other], tool_choice="required", **asked).choices[0]
    assert made.message.tool_calls[0].function.name in ("look_up", "stop")


def test_adapters_are_models():
    model = lithe.load("zoo:tiny")
    dice = torch.Generator().manual_seed(0)
    rack = Rack.of(model)
    with torch.no_grad():
        for weight in rack.make("lora:rank=2", name="other").parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=dice)
    wanted = plain(STORY, model=model)
    rack.use(None)
    server = Live(Engine(model, sequences=4), adapters=("other",))
    try:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            assert [(m.id, m.parent) for m in client.models.list()] == [("tiny", None), ("other", "tiny")]
            both = {name: client.completions.create(prompt=STORY, **COMMON | {"model": name}) for name in ("other", "tiny")}
        assert both["other"].choices[0].text == wanted != both["tiny"].choices[0].text == plain(STORY)
        assert both["other"].model == "other"
    finally:
        server.close()


def test_many_at_once_say_what_they_say_alone():
    prompts = [f"{STORY} {name}" for name in ("dog", "cat", "boy", "girl", "bird", "tree")]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=live().url + "/v1", api_key="none", max_retries=0) as client:
            async def one(prompt: str, stream: bool) -> str:
                made = await client.completions.create(prompt=prompt, stream=stream, **COMMON)
                return "".join([c.choices[0].text async for c in made]) if stream else made.choices[0].text

            return await asyncio.gather(*[one(prompt, i % 2 == 0) for i, prompt in enumerate(prompts)])

    assert asyncio.run(ask()) == [plain(prompt) for prompt in prompts]

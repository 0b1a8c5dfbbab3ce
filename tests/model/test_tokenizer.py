"""Tokenizers: BOS once, EOS from every place that names it, streams that never split a character."""

import json
import random

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, pre_tokenizers, processors, trainers

from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.model.convert import build_tokenizer
from lithe.model.tokenizer import Stream, Tokenizer, generation_settings, same_vocabulary

TEXT = ("Once upon a time, there was a tiny cat. She said: “Hello, wörld!” 你好，世界 😀👩‍👩‍👧 1234  two  spaces\n\n"
        "new\tline. ") * 3
SAMPLES = [TEXT, "", " ", "  leading", "trailing  ", "a", "\n", "é", "😀", "你好", "<0x41>", "a<|end|>b", "x\u0000y",
           "ﬀ ½ 한국어"]


def byte_level(post: bool = False) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|begin|>", "<|end|>", "<|eot|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([TEXT], trainer)
    if post:
        backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return backend


def metaspace() -> Backend:
    words = ["\u2581" + word for word in TEXT.split()[:12]]
    parts = sorted({word[:n] for word in words for n in range(2, len(word) + 1)} | set("\u2581abcdehilmnoprstuwy.,HSO"),
                   key=len)
    return build_tokenizer([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256)),
                            *((part, -float(i)) for i, part in enumerate(reversed(parts)))])


def folder_of(path, backend: Backend, settings: dict | None = None, **files: dict):
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    for name, content in {"tokenizer_config": settings or {}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module", params=["byte_level", "metaspace"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return Tokenizer.load(folder_of(tmp_path_factory.mktemp(request.param),
                                    {"byte_level": byte_level, "metaspace": metaspace}[request.param]()))


@pytest.mark.parametrize("text", SAMPLES)
def test_stream_gives_the_text(tokenizer, text):
    ids = tokenizer.encode(text, bos=False)
    stream = Stream(tokenizer)
    parts = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(parts) == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_stream_after_a_prompt(tokenizer, cut):
    ids = tokenizer.encode(TEXT, bos=False)
    while tokenizer.decode(ids[:cut]).endswith("\ufffd"):
        cut += 1
    stream = Stream(tokenizer, ids[:cut])
    shown = "".join(stream.push(i) for i in ids[cut:]) + stream.flush()
    assert tokenizer.decode(ids[:cut]) + shown == tokenizer.decode(ids)


def test_stream_of_noise_ends(tokenizer):
    dice = random.Random(0)
    for _ in range(50):
        ids = [dice.randrange(tokenizer.vocab_size + 5) for _ in range(60)]
        stream = Stream(tokenizer)
        parts = [stream.push(i) for i in ids]
        assert len("".join(parts) + stream.flush()) > 0
        assert stream.flush() == ""


def test_stream_holds_back_unfinished_characters(tokenizer):
    ids = tokenizer.encode("ab😀", bos=False)
    stream = Stream(tokenizer)
    assert "".join(stream.push(i) for i in ids[:-1]) == "ab"
    assert stream.push(ids[-1]) == "😀"


@pytest.mark.parametrize("post, config, expected", [
    (True, {}, True), (False, {}, False), (True, {"add_bos_token": False}, False), (False, {"add_bos_token": True}, True),
    (True, {"add_bos_token": True}, True), (False, {"add_bos_token": False}, False)])
def test_bos_is_there_once(tmp_path, post, config, expected):
    ours = Tokenizer.load(folder_of(tmp_path / "t", byte_level(post), {"bos_token": "<|begin|>", **config}))
    assert ours.bos_id == 0
    assert ours.encode("a tiny cat").count(0) == int(expected)
    assert ours.encode("<|begin|>a tiny cat").count(0) == 1
    assert ours.encode("a tiny cat", bos=False).count(0) == 0
    assert ours.decode(ours.encode("a tiny cat")) == "a tiny cat"


def test_same_ids_as_transformers(tmp_path):
    folder = folder_of(tmp_path / "t", byte_level(post=True),
                       {"bos_token": "<|begin|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in SAMPLES:
        assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("generation, model, expected", [
    ({"eos_token_id": [1, 2]}, {"eos_token_id": 0}, {1, 2}), ({"eos_token_id": 2}, {}, {2}), ({}, {"eos_token_id": [1]}, {1}),
    ({}, {"eos_token_id": 2}, {2}), ({}, {}, {1}), ({"eos_token_id": None}, {"eos_token_id": None}, {1})])
def test_eos(tmp_path, generation, model, expected):
    folder = folder_of(tmp_path / "t", byte_level(), {"eos_token": {"content": "<|end|>"}}, generation_config=generation,
                       config=model)
    assert Tokenizer.load(folder).eos_ids == expected


def test_special_tokens_map(tmp_path):
    folder = folder_of(tmp_path / "t", byte_level(), special_tokens_map={"eos_token": "<|eot|>", "pad_token": "<|end|>"})
    assert (Tokenizer.load(folder).eos_ids, Tokenizer.load(folder).pad_id) == ({2}, 1)


def test_vocabulary_larger_than_the_embedding(tmp_path):
    folder = folder_of(tmp_path / "t", byte_level())
    size = Tokenizer.load(folder).vocab_size
    assert Tokenizer.load(folder, embedding=size + 64).vocab_size == size
    with pytest.raises(FormatError, match=f"{size} tokens.* {size - 1} rows"):
        Tokenizer.load(folder, embedding=size - 1)


def test_same_vocabulary(tmp_path):
    backend = byte_level()
    a = Tokenizer.load(folder_of(tmp_path / "a", backend))
    assert same_vocabulary(a, Tokenizer.load(folder_of(tmp_path / "a2", backend))) is None
    backend.add_tokens([AddedToken("<|more|>", special=True)])
    b = Tokenizer.load(folder_of(tmp_path / "b", backend))
    assert a.fingerprint != b.fingerprint
    assert f"{a.vocab_size} and {b.vocab_size} tokens" in same_vocabulary(a, b) and "<|more|>" in same_vocabulary(a, b)


def test_truncation_in_the_file_is_not_obeyed(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ours = Tokenizer.load(folder_of(tmp_path / "t", backend))
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_generation_settings(tmp_path):
    def of(**raw):
        return generation_settings(folder_of(tmp_path / "t", byte_level(), generation_config=raw))

    assert of(temperature=0.6, top_k=20, top_p=1, eos_token_id=[1], max_length=20, num_beams=1, transformers_version="4.0",
              min_p=None, typical_p=0.9, do_sample=True) == {
                  "temperature": 0.6, "top_k": 20, "top_p": 1, "typical": 0.9, "do_sample": True}
    for bad in ({"num_beams": 4}, {"suppress_tokens": [1]}, {"temperature": "hot"}, {"temperature": -1}, {"do_sample": 1}):
        with pytest.raises(FormatError, match=next(iter(bad))):
            of(**bad)


@pytest.mark.parametrize("name, message",
                         [("tokenizer.model", "only tokenizer.model"), ("vocab.json", "only vocab.json"),
                          (None, "no tokenizer.json")])
def test_missing_tokenizer(tmp_path, name, message):
    if name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content",
                         [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b'{"version": "1.0"}'])
def test_broken_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("config",
                         [{"auto_map": {}}, {"bos_token": "<nowhere>"}, {"chat_template": 3}])
def test_broken_settings(tmp_path, config):
    with pytest.raises(FormatError):
        Tokenizer.load(folder_of(tmp_path / "t", byte_level(), config))


def test_a_broken_template_is_told_of_when_it_is_asked_for(tmp_path):
    tokenizer = Tokenizer.load(folder_of(tmp_path / "t", byte_level(), {"chat_template": "{% if %}"}))
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    with pytest.raises(FormatError, match="the chat template was refused"):
        tokenizer.chat([{"role": "user", "content": "a"}])


def test_chat(tmp_path):
    folder = folder_of(tmp_path / "t", byte_level(post=True),
                       {"bos_token": "<|begin|>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"
                                                              "{% if add_generation_prompt %}!{% endif %}{{ more }}"})
    ours, messages = Tokenizer.load(folder), [{"role": "user", "content": "cat"}]
    assert ours.chat(messages) == "<|begin|>cat!"
    assert ours.chat(messages, add_generation_prompt=False, more="?") == "<|begin|>cat?"
    assert ours.encode(ours.chat(messages)).count(0) == 1
    (folder / "chat_template.jinja").write_text("file {{ messages | length }}")
    assert Tokenizer.load(folder).chat(messages) == "file 1"
    with pytest.raises(UnsupportedError):
        Tokenizer.load(folder_of(tmp_path / "u", byte_level())).chat(messages)


def test_text_that_is_no_text(tokenizer):
    with pytest.raises(UsageError):
        tokenizer.encode("\ud800")

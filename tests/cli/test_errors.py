"""Bad input of every kind, as a user meets it: an exit code, one line that says what is wrong and what to do, no traceback."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lithe import registry
from lithe.cli import run
from lithe.contracts.small import small_folder
from lithe.model.cache import PlainCache
from lithe.model.load import zoo
from tests.bench.methods import FOLLOWS, HEAD, write
from tests.cli.folders import spoken

USAGE, UNSUPPORTED, FORMAT, MEMORY = 2, 3, 4, 5
WEIGHTS = "model.safetensors"
DRAFT = next(e for e in registry.entries("decode", "draft") if e.card.row is None and not e.card.needs)
SECOND = next((e for e in registry.entries("decode", "draft") if "second_model" in e.card.needs), None)


@pytest.fixture
def folder(tmp_path):
    """A whole model folder of the test's own, to be spoiled."""
    shutil.copytree(spoken(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def refused(capsys):
    """Run a command line that must fail with this code, in one line that holds `said`; nothing else is printed."""

    def go(words: list, code: int, said: str) -> str:
        assert run([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("lithe: ") and err.count("\n") == 1 and "Traceback" not in err, out + err
        assert re.search(said, err), err
        return err

    return go


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def relabel(path: Path, spoil) -> None:
    """Rewrite a safetensors file with another header and the same data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    spoil(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def first(header: dict) -> dict:
    """The entry whose bytes come first."""
    return min((value for key, value in header.items() if key != "__metadata__"), key=lambda value: value["data_offsets"])


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def pickled(folder):
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def only_gguf(folder):
    no_weights(folder)
    (folder / "model.gguf").write_bytes(b"GGUF")


def only_sentencepiece(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")


def shards(folder, place: str) -> None:
    """Two shards, one of them where the index says it is."""
    state = load_file(folder / WEIGHTS)
    no_weights(folder)
    save_file(state, folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, place)}))


def linked_out(folder):
    no_weights(folder)
    (folder.parent / "elsewhere").write_bytes(b"")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def large(folder):
    """Weights of 4 TB in a file of holes."""
    size, vocab = 2**14, 2**27
    change(folder / "config.json", hidden_size=size, vocab_size=vocab, tie_word_embeddings=True)
    header, at = {}, 0
    with open(folder / WEIGHTS, "rb") as file:
        old = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    old.pop("__metadata__", None)
    old.pop("lm_head.weight")
    for name, entry in old.items():
        shape = [vocab if n == 257 else size if n == 264 else n for n in entry["shape"]]
        stop = at + 2 * torch.Size(shape).numel()
        header[name], at = {"dtype": "BF16", "shape": shape, "data_offsets": [at, stop]}, stop
    text = json.dumps(header).encode()
    with open(folder / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + at)
        except OSError:
            pytest.skip("this file system holds no files of that size, not even empty ones")


HOSTILE = {
    "a loop": "{% for i in range(10**9) %}x{% endfor %}",
    "attributes": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "files": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
}


def set_(file: str, **values):
    """Spoil a folder by changing settings in one of its JSON files."""
    return lambda folder: change(folder / file, **values)


def put(file: str, content: bytes):
    return lambda folder: (folder / file).write_bytes(content)


def lie(spoil):
    """Spoil a folder by changing the header of its weights."""
    return lambda folder: relabel(folder / WEIGHTS, spoil)


def keep(some):
    """Spoil a folder by changing its dictionary of tensors."""
    return lambda folder: save_file(some(load_file(folder / WEIGHTS)), folder / WEIGHTS)


CONFIG, TOKENS = "config.json", "tokenizer_config.json"
# What may be wrong with a model folder: how to make it so, the exit code, and what is said.
FOLDERS = {
    "no weights": (no_weights, FORMAT, r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
    "truncated weights": (lambda f: put(WEIGHTS, (f / WEIGHTS).read_bytes()[:-100])(f), FORMAT, "cut short"),
    "empty weights": (put(WEIGHTS, b""), FORMAT, "truncated or no safetensors file"),
    "a header longer than its file": (put(WEIGHTS, b"\xff" * 8 + b"{}"), FORMAT, "truncated or no safetensors file"),
    "a header that lies of a size": (lie(lambda header: first(header).update(shape=[1])), FORMAT, "cannot fill"),
    "a header that lies of a type": (lie(lambda header: first(header).update(dtype="F8")), FORMAT, "unknown dtype"),
    "tensors that overlap": (lie(lambda header: header.update(twin=first(header))), FORMAT, "overlaps"),
    "a tensor too many": (keep(lambda tensors: tensors | {"x": torch.zeros(1)}), FORMAT, "no place"),
    "a tensor too few": (keep(lambda tensors: {k: v for k, v in tensors.items() if "norm" not in k}), FORMAT,
                         "needs .*norm.*which no file holds"),
    "pickled weights": (pickled, FORMAT, "is a pickle, which can run code .*convert it to safetensors"),
    "GGUF": (only_gguf, FORMAT, "is GGUF; convert it to a folder with safetensors"),
    "tokenizer.model alone": (only_sentencepiece, FORMAT, r"no tokenizer\.json, only tokenizer\.model: load it once with"),
    "a tokenizer of another model": (set_(CONFIG, vocab_size=100), FORMAT, "config.json asks for"),
    "a broken tokenizer": (put("tokenizer.json", b"{}"), FORMAT, r"tokenizer\.json"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), FORMAT, r"config\.json does not exist; a model folder needs it"),
    "a config that is not JSON": (put(CONFIG, b"{"), FORMAT, "not valid JSON"),
    "code hooks": (set_(CONFIG, auto_map={"AutoModel": "x.Y"}), FORMAT, "runs no code from a checkpoint"),
    "code hooks of a tokenizer": (set_(TOKENS, auto_map={"AutoTokenizer": ["x.Y"]}), FORMAT, "runs no code from a checkpoint"),
    "an unknown architecture": (set_(CONFIG, model_type="mamba"), FORMAT, "'mamba' is not supported"),
    "an unknown key that matters": (set_(CONFIG, attn_surprise=2.0), FORMAT, "attn_surprise"),
    "a trait not built": (set_(CONFIG, hidden_act="snake"), FORMAT, "activation 'snake'"),
    "generation settings not built": (put("generation_config.json", b'{"num_beams": 4}'), FORMAT, "num_beams = 4"),
    "a newer lithe": (set_("lithe.json", version=99), FORMAT, "update lithe"),
    "a shard outside": (lambda f: shards(f, "../outside.safetensors"), FORMAT, "not the name of a file in this folder"),
    "a shard that is missing": (lambda f: shards(f, "model-1.safetensors"), FORMAT, "does not exist; was the download cut"),
    "a link that leads out": (linked_out, FORMAT, "is a link that leads outside"),
    "more than memory holds": (large, MEMORY, r"need \d+\.\d\d GB of memory .*are available; choose a smaller model"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_folder_that_cannot_be_used(refused, folder, name):
    spoil, code, said = FOLDERS[name]
    spoil(folder)
    refused(["generate", folder, "a", "--max-tokens", "1"], code, said)


@pytest.mark.parametrize("name", ["pickled weights", "more than memory holds"])
@pytest.mark.parametrize("verb", ["chat", "bench", "doctor", "eval", "demo"])
def test_other_verbs_say_the_same(refused, folder, tmp_path, verb, name):
    spoil, code, said = FOLDERS[name]
    spoil(folder)
    (tmp_path / "text.txt").write_text("a")
    more = {"eval": [tmp_path / "text.txt"], "bench": ["--no-ledger"], "doctor": ["--method", DRAFT.address]}.get(verb, [])
    refused([verb, *(["--model"] * (verb == "demo")), folder, *more], code, said)


@pytest.mark.parametrize(("words", "said"), [
    (["zoo:tinny"], "the zoo has no 'zoo:tinny'; did you mean tiny"), (["zoo:"], f"known: {', '.join(zoo())}"),
    (["zoo:../zoo/tiny"], "the zoo has no"), (["zoo:../x"], "the zoo has no 'zoo:../x'"), (["zoo:tiny/."], "the zoo has no"),
    (["zoo:prompts"], "the zoo has no"), (["zoo:/etc"], "the zoo has no"),
    (["tiny"], "there is no model folder 'tiny'; give a folder, zoo:NAME .*or a hub id"), ([""], "no model folder ''"),
    (["./no/where"], "no model folder"), (["a/b/c"], "no model folder"), (["x" * 5000], "no model folder"),
    (["org/name", "--offline"], "--offline forbids asking the hub")])  # fmt: skip
def test_models_that_are_not_there(refused, words, said):
    refused(["generate", words[0], "a", *words[1:]], USAGE, said)


def test_a_file_is_no_model_folder(refused, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(["generate", tmp_path / "model.gguf", "a"], FORMAT, "is GGUF; convert it")
    (tmp_path / "notes.txt").write_text("")
    refused(["generate", tmp_path / "notes.txt", "a"], FORMAT, "is no model folder")


def test_a_hub_id_without_the_hub(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(["generate", "org/name", "a"], USAGE, r"to fetch it from the hub, pip install 'lithe\[hub\]'")


@pytest.mark.parametrize("error", [OSError("no network\nand a long story"), ValueError("no network"), Exception("no network")])
def test_a_hub_that_does_not_answer(refused, monkeypatch, error):
    hub = type(sys)("huggingface_hub")

    def snapshot_download(*words, **settings):
        raise error

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    refused(["generate", "org/name", "a"], USAGE, "'org/name' is no folder here, and the hub did not give it: no network")


@pytest.mark.skipif(SECOND is None, reason="no draft takes a second model")
def test_offline_holds_for_the_second_model_as_well(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    words = ["generate", spoken(), "a", "--method", f"{SECOND.address}:model=org/name"]
    refused([*words, "--offline"], USAGE, "--offline forbids")
    refused(words, USAGE, "pip install")


@pytest.mark.skipif(SECOND is None, reason="no draft takes a second model")
def test_a_draft_model_with_other_tokens(refused):
    refused(["generate", spoken(), "a", "--method", f"{SECOND.address}:model=zoo:tiny-draft"], UNSUPPORTED,
            "zoo:tiny-draft cannot draft for this model: .*")
    refused(["generate", spoken(), "a", "--method", f"{SECOND.address}:model={small_folder()}"], UNSUPPORTED, "cannot draft")
    refused(["generate", spoken(), "a", "--method", f"{SECOND.address}:model=zoo:no"], USAGE, "the zoo has no 'zoo:no'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(refused, device):
    refused(["generate", spoken(), "a", "--device", device], USAGE, f"device '{device}' cannot be used: ")


@pytest.mark.parametrize("device", ["potato", "meta", "cpu:x"])
def test_a_device_that_is_none(refused, device):
    refused(["generate", spoken(), "a", "--device", device], USAGE, f"device '{device}' cannot be used: ")


@pytest.mark.parametrize(("words", "said"), [
    (["--dtype", "float8"], "no dtype 'float8'; did you mean float"), (["--seed", "99999999999999999999"], "64 bits"),
    (["--method", "{follows}:after=many"], "after='many' is not of type int"), (["--method", ""], "names no method"),
    (["--method", "{follows}:aftr=1"], "did you mean after"), (["--method", "{follows}:after"], "not knob=value"),
    (["--method", "nosuch_method"], "no method 'nosuch_method'"), (["--method", "./no.py"], "cannot read method file"),
    (["--method", f"{DRAFT.name}x"], f"did you mean .*{DRAFT.name}"), (["--method", "{tmp}"], "there is no method"),
])  # fmt: skip
def test_absurd_settings(refused, tmp_path, words, said):
    paths = write(tmp_path, follows=FOLLOWS) | {"tmp": str(tmp_path)}
    refused(["generate", spoken(), "a", *(word.format(**paths) for word in words)], USAGE, said)


@pytest.mark.parametrize(("words", "said"), [
    (["--max-tokens", "0"], "--max-tokens"), (["--max-tokens", "many"], "--max-tokens"), (["--threads", "0"], "--threads"),
    (["--temperature", "-1"], "--temperature"), (["--threads", "9999"], "256"),
    (["--nosuch"], "No such option"), (["one", "more"], "unexpected extra argument")])  # fmt: skip
def test_absurd_options_are_told_with_the_usage(capsys, words, said):
    assert run(["generate", str(spoken()), "a", *words]) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and "Usage: lithe generate" in err and said in err and "Traceback" not in err


def test_a_temperature_that_is_no_number_is_refused(capsys):
    """By typer's range or by the knob's own, as typer's version has it."""
    assert run(["generate", str(spoken()), "a", "--temperature", "nan"]) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and "temperature" in err and "nan" in err and "Traceback" not in err


@pytest.mark.parametrize(("old", "new", "code", "said"), [
    ("class Method:", "class Method(:", USAGE, r"mine\.py cannot be imported: SyntaxError: .*line 15"),
    ("class Method:", "import nosuch\n\n\nclass Method:", USAGE, "ModuleNotFoundError: No module named 'nosuch'"),
    ("class Method:", "class Methods:", USAGE, "no class Method"),
    ("class Knobs:", "class Knops:", USAGE, "no dataclass Knobs"),
    ("def propose", "def suggest", USAGE, "its Method has no propose"),
    ("decode/draft", "decode/route", USAGE, "does not take part in generating"),
    ('emits=("det",)', "emits=()", USAGE, "proposes no trees"),
    ('emits=("det",)', 'emits=("det",), needs=("magic",)', USAGE, "needs has unknown word 'magic'; known: tree"),
    ("return [Tree", "return []  # [Tree", 1, "mine is broken: it proposed 0 trees for 1 sequences"),
    ("Tree.root(s.ids[-1])", "Tree.chain(s.ids[-1], [999])", 1, "token 999, which is outside the vocabulary of 257"),
    ("Tree.root(s.ids[-1])", "Tree.root(7)", 1, "does not begin with the last token, 97")])  # fmt: skip
def test_a_method_of_ones_own_that_is_broken(refused, tmp_path, old, new, code, said):
    source = HEAD.format(what="Mine")
    assert old in source
    path = write(tmp_path, mine=source.replace(old, new))["mine"]
    refused(["generate", spoken(), "a", "--method", path], code, said)


def test_needs_that_the_cache_cannot_meet(refused, capsys, tmp_path, monkeypatch):
    """The plain cache can all that cards may ask for; one that could not would be told before anything runs."""
    mine = write(tmp_path, mine=HEAD.format(what="Mine").replace('("det",)', '("det",), needs=("tree", "tap:final")'))["mine"]
    assert run(["generate", str(spoken()), "a", "--method", mine, "--max-tokens", "1"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(PlainCache, "can", PlainCache.can - {"tree"})
    refused(["generate", spoken(), "a", "--method", mine], UNSUPPORTED, "mine needs tree, which this model and cache do not")


def test_a_rule_that_cannot_take_the_drafts_trees(refused, tmp_path):
    mine = write(tmp_path, follows=FOLLOWS)["follows"]
    for rule in registry.entries("decode", "accept"):
        if "det" not in rule.card.takes:
            refused(["generate", spoken(), "a", "--method", mine, "--method", rule.address], UNSUPPORTED,
                    f"{rule.name} is not exact for det trees, which .*follows.py proposes; it takes ")


def test_prompts_that_do_not_fit(refused, tmp_path):
    refused(["generate", spoken(), "a" * 96], MEMORY, "the prompt has 96 tokens, but the model's context is 96, of which one")
    (tmp_path / "p.txt").write_text(f"a\n{'a' * 97}\n")
    refused(["bench", spoken(), "--prompts", tmp_path / "p.txt", "--no-ledger"], MEMORY, "prompt 2: the prompt has 97 tokens")
    assert run(["generate", str(spoken()), "a" * 95]) == 0


def test_prompts_that_are_none(refused, monkeypatch):
    import io

    refused(["generate", spoken(), ""], USAGE, "the prompt is empty")
    for data, code, said in ((b"", USAGE, "the prompt is empty"),
                             (b"a\xff", FORMAT, "on standard input is not UTF-8: byte 2 is 0xff")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        refused(["generate", spoken(), "-"], code, said)
    refused(["generate", spoken(), "a\udcff"], USAGE, "cannot be encoded")  # how a shell hands over a byte that is no text
    monkeypatch.setattr(sys, "stdin", None)
    refused(["generate", spoken(), "-"], USAGE, "standard input, which is closed")


@pytest.mark.parametrize("verb", ["bench", "doctor"])
def test_a_prompt_file_that_is_not_utf8(refused, tmp_path, verb):
    (tmp_path / "p.txt").write_bytes(b"one\nna\xefve\n")
    more = {"bench": ["--no-ledger"], "doctor": ["--method", DRAFT.address]}[verb]
    refused([verb, spoken(), "--prompts", tmp_path / "p.txt", *more], FORMAT, r"p\.txt, line 2 is not UTF-8: byte 3 is 0xef")


def test_a_text_that_is_not_utf8(refused, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\nna\xefve\n")
    refused(["eval", spoken(), tmp_path / "t.txt", "--no-ledger"], FORMAT, "UTF-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_chat_template(refused, folder, name):
    change(folder / "tokenizer_config.json", chat_template=HOSTILE[name])
    refused(["generate", folder, "a", "--chat"], FORMAT, "the chat template was refused: ")
    refused(["chat", folder], FORMAT, "the chat template was refused: ")


def test_a_model_that_cannot_chat(refused):
    refused(["generate", spoken(template=None), "a", "--chat"], UNSUPPORTED, "no chat template; give it plain text")
    refused(["generate", small_folder(), "a", "--chat"], USAGE, "no tokenizer, so it has no chat template")
    refused(["generate", small_folder(), "a"], USAGE, "no tokenizer: give token ids")


def test_places_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "text.txt").write_text("a b a b")
    words = ["eval", spoken(), tmp_path / "text.txt", "--ledger", tmp_path / "file" / "ledger.jsonl"]
    refused(words, USAGE, "--no-ledger")
    with open(tmp_path / "model.bin", "wb") as file:  # a llama2.c checkpoint of random numbers, and its ten tokens
        file.write(struct.pack("<7i", 8, 16, 1, 2, 2, 10, 32) + bytes(8000))
    (tmp_path / "tok.vocab").write_text("<unk>\n<s>\n</s>\n" + "\n".join("abcdefg") + "\n")
    convert = ["convert", tmp_path / "model.bin", "--tokenizer", tmp_path / "tok.vocab", "-o"]
    refused([*convert, tmp_path / "file" / "out"], USAGE, "cannot write .*choose a folder you may write to")
    refused([*convert, tmp_path / "file"], USAGE, "is a file; choose another name")
    refused([*convert, tmp_path], USAGE, "exists and is not empty")


def test_checkpoints_that_cannot_be_converted(refused, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"no checkpoint at all, but long enough to hold seven numbers")
    (tmp_path / "tok.bin").write_bytes(b"")
    words = ["--tokenizer", tmp_path / "tok.bin", "-o", tmp_path / "out"]
    refused(["convert", tmp_path / "model.bin", *words], FORMAT, "is no llama2.c checkpoint: its sizes cannot be")
    refused(["convert", tmp_path / "none.bin", *words], FORMAT, "none.bin cannot be read")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers(refused, folder):
    state = load_file(folder / WEIGHTS)
    save_file(state | {"model.norm.weight": state["model.norm.weight"] * float("nan")}, folder / WEIGHTS)
    refused(["generate", folder, "a"], 1, "plain cannot go on: .*scores are not numbers")

"""`lithe generate` from end to end: what is printed, where, and that it is the model's own text."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

import lithe
from lithe import recipe, registry
from lithe.cli import run
from lithe.errors import UsageError
from lithe.train.fitted import FRESH
from tests.bench.methods import FOLLOWS, HEAD, LOSSY, WARM, write
from tests.cli.folders import ROUND, drafts, spoken

ZOO = "zoo:tiny-draft"
ONCE = "Once upon a time"
FIELDS = {"text", "tokens", "sources", "finished", "passes", "tokens_per_pass", "tokens_per_s", "method", "promises"}
DRAFTS = [*drafts(), *(f"{e.address}:heads={FRESH}" if e.card.trains else e.address
                       for e in registry.entries("decode", "draft") if "second_model" in e.card.needs)]
each_draft = pytest.mark.parametrize("draft", DRAFTS, ids=[spec.partition(":")[0] for spec in DRAFTS])
WARPS = {e.name for e in registry.entries("sampling", "warp")}
RULES = registry.entries("decode", "accept")
GREEDY, SAMPLED = (next((e.name for e in RULES if promise in e.card.promises and "det" in e.card.takes), "none")
                   for promise in ("same_tokens", "same_law"))
CHAIN = next((e.address for e in RULES if "chain" in e.card.takes and "det" not in e.card.takes), "none")
samples = pytest.mark.skipif(not WARPS.issuperset({"temperature", "top_p", "top_k"}), reason="an option's warp is not here")


@pytest.fixture
def generate(capsys):
    """Run it and return (exit code, standard output, standard error)."""

    def go(*words: object, prompt: str = ONCE, model: object = ZOO) -> tuple[int, str, str]:
        code = run(["generate", str(model), prompt, *map(str, words)])
        return code, *capsys.readouterr()

    return go


@pytest.fixture
def told(generate):
    """The same with --json, as a dictionary."""

    def go(*words: object, **where) -> dict:
        code, out, err = generate(*words, "--json", **where)
        assert code == 0 and err == "", err
        return json.loads(out)

    return go


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path, follows=FOLLOWS, lossy=LOSSY, warm=WARM, idle=HEAD.format(what="Guesses nothing"),
                 shady=LOSSY.replace('promises=("same_tokens",), ', ""))


# Guesses nothing, but slowly, so that a test can act meanwhile. Knob: hundredths of a second a round.
SLOW = HEAD.format(what="Takes its time") + """
    def propose(self, sequences, room):
        import time

        time.sleep(self.knobs.after / 100)
        return [Tree.root(s.ids[-1]) for s in sequences]
"""


def typed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_text_goes_to_the_pipe_and_figures_beside_it(generate):
    code, out, err = generate("--max-tokens", 12)
    expected = "".join(step.text for step in lithe.generate(lithe.load(ZOO), ONCE, max_tokens=12))
    assert (code, out) == (0, expected + "\n")
    assert re.fullmatch(r"12 tokens in 12 passes, 1\.00 a pass, \d+ tokens/s\n", err)


def test_json_is_all_there_is(told):
    found = told("--max-tokens", 12)
    assert set(found) == FIELDS
    assert len(found["tokens"]) == len(found["sources"]) == found["passes"] == 12
    assert (found["method"], found["finished"], found["tokens_per_pass"]) == ("plain", "length", 1.0)
    assert found["promises"] == ["same_tokens", "same_law"] and found["tokens_per_s"] > 0


@each_draft
def test_every_draft_says_the_same(told, draft):
    plain, fast = told("--max-tokens", 40), told("--max-tokens", 40, "--method", draft)
    assert (fast["text"], fast["tokens"], fast["finished"]) == (plain["text"], plain["tokens"], plain["finished"])
    assert fast["method"] == str(registry.parse(draft)) and fast["passes"] <= plain["passes"]


@pytest.mark.parametrize("name", [name for name in recipe.names() if "draft" in recipe.read(name, *recipe.KEYS)])
def test_every_shipped_recipe_that_drafts_says_the_same(told, name):
    """With untrained weights where a method has some: those that fit this target are the user's to make."""
    wanted = recipe.read(name, *recipe.KEYS)
    draft = untrained(wanted["draft"])
    own = [] if draft == str(registry.parse(wanted["draft"])) else ["--method", draft]
    plain, fast = told("--max-tokens", 24), told("--max-tokens", 24, "--recipe", name, *own)
    lead = wanted.get("tree", wanted["draft"]).partition(":")[0]
    assert fast["text"] == plain["text"] and fast["method"].startswith(lead) and fast["passes"] <= plain["passes"]


def untrained(text: str) -> str:
    """A draft's spec with fresh weights wherever a method has weights, inside it too."""
    inside = ":" not in text.partition("(")[0]
    spec = registry.parse(text.replace("(", ":").replace(";", ",").removesuffix(")") if inside else text, "draft")
    if spec.entry.card.trains:
        spec.values["heads"] = FRESH
    if inner := spec.values.get("draft"):
        name, _, knobs = untrained(inner).partition(":")
        spec.values["draft"] = f"{name}({knobs.replace(',', ';')})" if knobs else name
    return str(spec)


def test_draft_warp_and_rule_go_together(told, mine):
    settings = ("--method", mine["warm"], "--max-tokens", 16, "--seed", 3)
    found = told("--method", f"{mine['follows']}:after=3", "--method", f"accept={SAMPLED}", *settings)
    assert found["method"] == "follows:after=3" and found["promises"] == ["same_tokens", "same_law"]
    assert found["text"] == told(*settings)["text"]  # this rule draws once a token, as plain sampling


@samples
@each_draft
def test_a_seed_repeats_and_another_differs(told, draft):
    sampled = lambda seed: told("--temperature", 0.8, "--method", draft, "--max-tokens", 12, "--seed", seed)["text"]
    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(1, 4)}) > 1


@samples
def test_temperature_0_and_top_k_1_are_greedy(told):
    plain = told("--max-tokens", 12)["text"]
    assert told("--max-tokens", 12, "--temperature", 0)["text"] == plain
    assert told("--max-tokens", 12, "--temperature", 1, "--top-k", 1, "--seed", 9)["text"] == plain


def test_a_file_of_ones_own_by_path_with_a_knob(told, mine):
    prompt = "one two one two one two one"
    found = told("--max-tokens", 30, "--method", f"{mine['follows']}:after=3", prompt=prompt)
    assert found["method"] == "follows:after=3" and "follows" in found["sources"]
    assert found["passes"] < 30 and found["text"] == told("--max-tokens", 30, prompt=prompt)["text"]


def test_one_text_may_join_methods_of_several_slots(told, mine):
    follows = f"{mine['follows']}:after=3"
    found = [told("--max-tokens", 8, *words) for words in (["--method", f"{follows} + {GREEDY}"],
                                                           ["--method", follows, "--method", GREEDY])]
    for one in found:
        one.pop("tokens_per_s")
    assert found[0] == found[1] and "follows" in found[0]["method"]


def test_a_method_that_promises_nothing_says_so(generate, told, mine):
    assert told("--max-tokens", 4, "--method", mine["shady"])["promises"] == []
    assert "(this method may change the output)\n" in generate("--max-tokens", 4, "--method", mine["shady"])[2]


def test_a_recipe_of_ones_own_by_path(told, mine, tmp_path):
    (tmp_path / "r.toml").write_text(f'summary = "s"\ndraft = "{mine["follows"]}:after=2"\nwarps = ["{mine["warm"]}"]\n')
    found = told("--max-tokens", 8, "--recipe", tmp_path / "r.toml")
    assert found["method"] == "follows:after=2" and found["promises"] == ["same_tokens", "same_law"]
    other = told("--max-tokens", 8, "--recipe", tmp_path / "r.toml", "--method", mine["idle"])
    assert other["method"] == "idle"  # what is said wins over the recipe


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--method", "{follows}", "--method", "{idle}"], 2, "slot draft is filled twice, by .*follows.py and .*idle.py"),
    (["--method", SAMPLED, "--method", GREEDY], 2, "slot accept is filled twice"),
    (["--method", "{warm}", "--method", "{warm}"], 2, "asked for twice"),
    (["--method", SAMPLED], 3, "no rule for this request: give a temperature above 0"),
    (["--method", GREEDY, "--method", "{warm}"], 3, "no rule for this request: use temperature 0"),
    (["--method", "{follows}", "--method", CHAIN, "--method", "{warm}"], 3, "not exact for det trees, which .*follows"),
    (["--recipe", "nowhere.toml"], 2, "no recipe 'nowhere.toml'"), (["--recipe", "demoo"], 2, "did you mean demo"),
    (["--recipe", "demo"], 2, "says methods, which has no meaning here"),
    (["--method", f"draft={SAMPLED}"], 2, "no method .* on shelf 'draft'"),
    (["--method", "my_warp=0.9"], 2, "no shelf 'my_warp'.*name:knob=value")])  # fmt: skip
def test_what_does_not_go_together_is_told(generate, mine, words, code, said):
    got, out, err = generate("--max-tokens", "2", *(word.format(**mine) for word in words))
    assert (got, out) == (code, "")
    assert re.search(said, err) and err.count("\n") == 1 and err.startswith("lithe: ")


@samples
def test_what_only_sampling_uses_is_told_where_nothing_is_sampled(generate):
    code, _, err = generate("--top-p", "0.9")
    assert code == 2 and "top_p is for sampling, but without a temperature decoding is greedy" in err
    assert generate("--top-p", "0.9", "--temperature", "0", "--max-tokens", "1")[0] == 0


@pytest.mark.parametrize(("text", "said"), [
    ('draught = "x"', "unknown key 'draught'; did you mean draft"), ("draft = 3", "draft must be a str"),
    ('warps = "top_p"', "warps must be a list"), ("warps = [1]", "warps must be a list of str"),
    ("draft = ", "recipe .*r.toml"), ("max_tokens = 0", "max_tokens"), ('prompts = "p"', "says prompts, which has no meaning"),
    ('draft = "top_pp"', "no method 'top_pp'")])  # fmt: skip
def test_recipes_that_say_nonsense_are_told(generate, tmp_path, text, said):
    (tmp_path / "r.toml").write_text(text)
    code, _, err = generate("--recipe", tmp_path / "r.toml")
    assert code == 2 and re.search(said, err)


@pytest.mark.parametrize("value", ["max_tokens = true", "max_tokens = -1", "methods = [[]]"])
def test_recipes_hold_values_of_their_kind(tmp_path, value):
    (tmp_path / "r.toml").write_text(value)
    with pytest.raises(UsageError, match="must be"):
        recipe.read(str(tmp_path / "r.toml"), *recipe.KEYS)


def test_the_prompt_may_come_from_standard_input(told, monkeypatch):
    typed(monkeypatch, ONCE.encode())
    assert told("--max-tokens", 8, prompt="-")["text"] == told("--max-tokens", 8)["text"]


def test_stop_strings_end_the_text(told, mine):
    whole = told("--max-tokens", 30)["text"]
    words = whole.split()
    found = told("--max-tokens", 30, "--stop", "not to be found", "--stop", words[4])
    assert found["finished"] == "stop" and found["text"] == whole[: whole.index(words[4])]
    assert told("--max-tokens", 30, "--stop", words[4], "--method", mine["follows"])["text"] == found["text"]


def test_an_end_of_text_ends_it(told):
    found = told(prompt="x", model=spoken(ends=True))
    assert found["text"] == ROUND and found["finished"] == "eos"


def test_chat_puts_the_prompt_into_the_template(told):
    found = told("--chat", "--max-tokens", 3, prompt="hi", model=spoken())
    assert found["text"] == "é€"[:1] + "�"  # the template's own letter a is what is continued, and 3 bytes are cut at one


@each_draft
def test_one_token_is_one_token(told, draft):
    found = told("--max-tokens", 1, "--method", draft)
    assert (len(found["tokens"]), found["passes"], found["tokens_per_pass"]) == (1, 1, 1.0)


def test_one_token_in_one_pass_is_told_in_the_singular(generate):
    assert generate("--max-tokens", 1)[2].startswith("1 token in 1 pass, ")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_run(told, mine, dtype):
    plain, fast = (told("--max-tokens", 16, "--dtype", dtype, *more) for more in ((), ("--method", mine["follows"])))
    assert len(plain["tokens"]) == 16 and plain["tokens"] == fast["tokens"]


def written(monkeypatch, *words: str, prompt: str = "a") -> list[str]:
    """Every piece that is written to standard output."""
    out = io.StringIO()
    pieces: list[str] = []
    monkeypatch.setattr(out, "write", pieces.append)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["generate", str(spoken()), prompt, *words]) == 0
    return pieces


@pytest.mark.parametrize("drafts", [False, True])
def test_streaming_never_splits_a_character(monkeypatch, mine, drafts):
    """Whatever was accepted together, also where a prompt ends inside the round, and where the limit falls into a character."""
    method = ["--method", mine["follows"]] * drafts
    for limit in range(1, 14):
        *pieces, end = written(monkeypatch, *method, "--max-tokens", str(limit), prompt=ROUND * 2 + "a")
        data = (ROUND * 9).encode()[1 : limit + 1]
        assert "".join(pieces) == data.decode(errors="replace") and end == "\n"
        for piece in pieces[:-1]:
            assert "�" not in piece  # only what the limit cut off may be half a character


def test_a_stop_string_of_many_bytes_is_found(told, mine):
    found = told("--stop", "😀", "--method", mine["follows"], model=spoken(), prompt=ROUND * 2 + "a")
    assert found["text"] == "é€" and found["finished"] == "stop"


def test_sources_are_coloured_on_a_terminal_only(process, mine):
    words = ["generate", str(spoken()), ROUND * 2 + "a", "--max-tokens", "24", "--method", mine["follows"]]
    plain, shown, mute = (process(*words, *more, terminal=terminal, TERM="xterm-256color", COLUMNS="40")
                          for more, terminal in (((), False), ((), True), (["--no-sources"], True)))
    assert plain.end() == shown.end() == mute.end() == 0
    expected = (ROUND * 9).encode()[1:25].decode()
    assert plain.out.decode() == expected + "\n" and b"24 tokens in" in plain.err
    for child, coloured in ((shown, True), (mute, False)):
        text = child.out.decode().partition("24 tokens in")[0].replace("\r\n", "\n")
        assert ("\x1b[32m" in text) == coloured  # of the one source
        assert re.sub(r"\x1b\[[\d;]*m", "", text) == expected + "\n"


def test_text_streams_as_it_is_made(process, tmp_path):
    path = write(tmp_path, slow=SLOW)["slow"]
    child = process("generate", str(spoken()), "a", "--max-tokens", "24", "--method", f"{path}:after=1")
    pieces = [os.read(child.stdout, 65536) for _ in range(5)]
    assert child.end() == 0
    assert all(piece.decode() for piece in pieces)  # each read is of whole characters
    assert b"".join(pieces) + child.out == (ROUND * 9).encode()[1:25] + b"\n"


def test_a_process_with_all_its_imports(mine):
    """Text to a pipe, figures beside it, nothing else. Loading must not import torch's compiler, which takes seconds."""
    words = ["generate", str(spoken()), "-", "--max-tokens", "24", "--method", mine["follows"]]
    code = f"import sys, lithe.cli; code = lithe.cli.run({words}); assert 'torch._dynamo' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], input=(ROUND + "a").encode(), capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout.decode() == (ROUND * 9).encode()[1:25].decode() + "\n", done.stderr
    assert re.fullmatch(rb"24 tokens in \d+ passes, [\d.]+ a pass, \d+ tokens/s\n", done.stderr)


def test_a_reader_that_leaves_ends_it_quietly(process):
    child = process("generate", str(spoken()), "a", "--max-tokens", "90")
    os.close(child.stdout)
    child.stdout = os.open(os.devnull, os.O_RDONLY)
    assert child.end() == 141 and child.err == b""


def test_letters_that_the_terminal_lacks_are_escaped(process):
    ascii_only = "import sys; sys.stdout = open(1, 'w', closefd=False, encoding='ascii')"
    child = process("generate", str(spoken()), "a", "--max-tokens", "5", before=ascii_only)
    assert child.end() == 0 and child.out == b"\\xe9\\u20ac\n"

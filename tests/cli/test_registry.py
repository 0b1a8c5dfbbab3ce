"""Specs and cards: what is right is found, what is wrong is named with what would be near."""

import dataclasses
import sys

import pytest

from lithe import registry
from lithe.card import Card, check_knobs
from lithe.errors import UsageError
from tests.cli.own import SOURCE

NAMES = [e.name for e in registry.entries()]
ANY = next(e for e in registry.entries() if NAMES.count(e.name) == 1)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def fresh():
    """Let the test change what can be found, and forget it afterwards."""
    registry._all.cache_clear()
    yield
    registry._all.cache_clear()


def test_every_name_and_address_is_found():
    for entry in registry.entries():
        assert registry.find(entry.address) == entry
        assert registry.find(entry.name, entry.shelf) == entry
        assert registry.parse(f"{entry.shelf}={entry.address}").entry == entry


def test_a_file_of_ones_own_is_a_method(mine):
    spec = registry.parse(f"{mine}:tokens=3,loud=yes")
    assert (spec.entry.name, spec.entry.room, spec.entry.shelf) == ("mine", "decode", "draft")
    assert spec.entry.summary == "Guess that the last word is said again."
    assert (spec.knobs.tokens, spec.knobs.loud, spec.knobs.rate) == (3, True, 0.5)
    assert registry.parse(f"draft={mine}").entry == spec.entry
    assert registry.parse(str(mine), "draft").knobs == registry.parse(f"{mine}:").knobs


@pytest.mark.parametrize(("given", "value"), [
    ("tokens=3", 3), ("tokens=3.0", 3), ("rate=1e-3", 1e-3), ("rate=1", 1.0), ("loud=0", False), ("mode=two", "two"),
    ("most=none", None), ("most=7", 7)])  # fmt: skip
def test_values_take_the_type_of_their_knob(mine, given, value):
    made = getattr(registry.parse(f"{mine}:{given}").knobs, given.partition("=")[0])
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(("given", "said"), [
    ("tokns=3", "did you mean tokens"), ("tokens=0", "below 1"), ("tokens=9", "above 8"), ("tokens=2.5", "not of type int"),
    ("tokens=many", "not of type int"), ("tokens=", "not of type int"), ("tokens=1e999", "not of type int"),
    ("tokens=nan", "not of type int"), ("rate=nan", "not a number"), ("rate=inf", "above 1"), ("rate=-0.1", "below 0"),
    ("loud=maybe", "not of type bool"), ("mode=three", "not one of one, two"), ("most=0", "below 1"),
    ("tokens=1,tokens=2", "twice"), ("tokens=1, tokens=2", "twice"), ("tokens", "not knob=value"), ("=3", "not knob=value")])
def test_absurd_knobs_are_told(mine, given, said):
    with pytest.raises(UsageError, match=said):
        registry.parse(f"{mine}:{given}")


@pytest.mark.parametrize(("spec", "said"), [
    ("", "names no method"), (":k=1", "names no method"), (f"{ANY.name}x", f"did you mean.*{ANY.name}"),
    (f"{ANY.shelf}s={ANY.name}", f"no shelf.*did you mean {ANY.shelf}"), ("zzzz", "known:"),
    (f"{ANY.name}:nosuchknob=1", "no knob 'nosuchknob'"), ("./nowhere.py", "cannot read method file")])
def test_unknown_names_are_told_with_near_ones(spec, said):
    with pytest.raises(UsageError, match=said):
        registry.parse(spec)


def test_a_spec_for_another_shelf_is_refused(mine):
    with pytest.raises(UsageError, match="names shelf 'draft' where 'accept' is wanted"):
        registry.parse(f"draft={mine}", "accept")


def test_a_name_on_two_shelves_must_say_which(monkeypatch):
    twin = dataclasses.replace(ANY, shelf="other")
    monkeypatch.setattr(registry, "_all", lambda: (ANY, twin))
    with pytest.raises(UsageError, match=f"several shelves.*{ANY.address}, {twin.address}"):
        registry.find(ANY.name)
    assert registry.find(ANY.name, "other") == twin
    assert registry.parse(f"other={ANY.name}").entry == twin


@pytest.mark.parametrize(("old", "new", "said"), [
    ('"""Guess that the last word is said again."""', "", "needs a docstring"),
    ("CARD = ", "CART = ", "needs a docstring and CARD"),
    ('paper="Mine"', "paper=TITLE", "literals only"),
    ('paper="Mine"', 'paper="Mine", **FIELDS', "literals only"),
    ('paper="Mine"', '"Mine", paper="Mine"', "literals only"),
    ('paper="Mine"', 'title="Mine"', "unexpected keyword argument 'title'"),
    ('"same_tokens"', '"same_tokns"', "unknown word 'same_tokns'"),
    ('"det"', '"dice"', "unknown word 'dice'"),
    (', shelf="decode/draft"', "", "says where it belongs"),
    ('shelf="decode/draft"', 'shelf="draft"', "says where it belongs"),
    ("CARD = Card(", "CARD = Card((", "mine.py"),
])  # fmt: skip
def test_a_file_that_is_no_method_is_told(tmp_path, old, new, said):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        registry.read(path)


def test_a_file_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / "mine.py").write_bytes(b'"""\xff"""')
    with pytest.raises(UsageError, match="cannot read method file"):
        registry.read(tmp_path / "mine.py")


def test_reading_runs_nothing(mine):
    mine.write_text(mine.read_text() + "\nraise SystemExit(9)\n")
    assert registry.read(mine).card == Card(paper="Mine", promises=("same_tokens",), emits=("det",), shelf="decode/draft")


def test_an_entry_point_is_a_method(tmp_path, monkeypatch, fresh):
    (tmp_path / "my_lithe_plugin.py").write_text(SOURCE, encoding="utf-8")
    info = tmp_path / "my_lithe_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lithe-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lithe.methods]\nsay_again = my_lithe_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.find("say_again")
    assert entry.address == "decode/draft/say_again"
    assert "my_lithe_plugin" not in sys.modules
    assert entry.knobs(tokens="4").tokens == 4


def test_an_entry_point_that_leads_nowhere_is_told(tmp_path, monkeypatch, fresh):
    info = tmp_path / "gone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lithe.methods]\ngone = no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"entry point 'gone' names module 'no_such_module'"):
        registry.entries()


def test_knobs_of_every_method_have_help_and_legal_defaults():
    for entry in registry.entries():
        check_knobs(entry.knobs(), entry.name)
        for field in dataclasses.fields(entry.module.Knobs):
            assert field.metadata.get("help"), f"{entry.address}: knob {field.name} has no help"

"""Differences of folders: exact ones give the other checkpoint back, packed ones fit one base, nothing is half-written."""

import hashlib
import json
import shutil
import weakref
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file

from lithe.cli import run
from lithe.contracts.adapter import stir
from lithe.contracts.small import small_model
from lithe.errors import FormatError, LitheError, UsageError
from lithe.model.checkpoint import load, save
from lithe.tune import difference, packed, source
from lithe.tune.rack import Rack


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base in bf16; two that training moved, in float32; an adapter of each layout on the base; a stranger."""
    place, base = tmp_path_factory.mktemp("models"), small_model()
    save(base, place / "base", dtype=torch.bfloat16)
    for number, name in enumerate(("one", "two", "stranger")):
        moved, dice = load(place / "base"), torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, weight in moved.named_parameters():
                if "norm" not in key:
                    weight.add_(0.05 * torch.randn(weight.shape, generator=dice))
        save(moved, place / name, dtype=torch.bfloat16 if name == "stranger" else torch.float32)
    for name in ("lora:rank=2", "ia3", "bitfit"):
        model = load(place / "base")
        model.folder = place / "base"
        rack = Rack.of(model)
        stir(rack.make(name, name="a", seed=3), 1, 0.02)
        rack.save("a", place / name.partition(":")[0])
    return place


def bits(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def alike(one: Path, other: Path, file: str) -> bool:
    a, b = load_file(one / file), load_file(other / file)
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("after", "file"), [("one", "model.safetensors"), *((name, "adapter_model.safetensors") for name in (
    "lora", "ia3", "bitfit"))])
def test_without_a_method_the_other_checkpoint_comes_back_to_the_bit(folders, tmp_path, after, file):
    before = bits(folders)
    for start in (None,) if after == "one" else ("fresh", "nothing"):
        change = difference.between(folders / "base", folders / after, start=start)
        where = difference.pack(change, tmp_path / f"packed-{start}")
        out = difference.apply(difference.between(folders / "base", where), tmp_path / f"out-{start}")
        assert alike(out, folders / after, file)
    assert bits(folders) == before, "what is read is never written to"
    if after == "one":
        assert load(out)(torch.tensor([[1, 2]])).logits.equal(load(folders / after)(torch.tensor([[1, 2]])).logits)
        assert json.loads((out / "lithe.json").read_text())["receipts"][-1]["verb"] == "delta"
    else:
        model = load(folders / "base")
        model.folder = folders / "base"
        Rack.of(model).load(out)


def test_what_is_packed_fits_its_own_base_only(folders, tmp_path):
    spec = difference.parse(["compeft:share=0.1"])
    for after in ("one", "lora"):
        change = difference.between(folders / "base", folders / after)
        where = difference.pack(difference.through(change, spec), tmp_path / after)
        with pytest.raises(FormatError, match=r"own base|taken from"):
            difference.between(folders / "stranger", where)
        first, again = difference.between(folders / "base", where), difference.between(folders / "base", where)
        assert all(torch.equal(first.delta(name), again.delta(name)) for name in first.names)
        kept = sum(int(first.delta(name).count_nonzero()) for name in first.names)
        assert kept == int(0.1 * first.before.size)
    with pytest.raises(FormatError, match="other weights"):
        difference.between(folders / "stranger", folders / "lora")
    with pytest.raises(UsageError, match="no difference"):
        difference.between(folders / "lora", folders / "one")


def test_an_adapter_counted_from_its_start_moves_less_than_from_nothing(folders):
    """LoRA's A is drawn, not learned: counted from nothing, most of the difference is noise."""
    far = {start: difference.between(folders / "base", folders / "lora", start=start) for start in ("fresh", "nothing")}
    norm = {start: sum(change.delta(name).square().sum() for name in change.names) for start, change in far.items()}
    assert norm["fresh"] < norm["nothing"] / 3


def test_merging_is_the_sum_of_the_parts_or_what_the_method_makes(folders, tmp_path):
    changes = [difference.between(folders / "base", folders / name) for name in ("one", "two")]
    plain = difference.merged(changes, [1.0, -0.5], [])
    name = plain.names[3]
    wanted = changes[0].delta(name) - 0.5 * changes[1].delta(name)
    assert torch.allclose(plain.delta(name), wanted, atol=1e-7)
    voted = difference.merged(changes, [1.0, 1.0], difference.parse(["dare:drop=0.5", "ties:share=0.3"]))
    assert not torch.allclose(voted.delta(name), changes[0].delta(name) + changes[1].delta(name), atol=1e-3)
    out = difference.apply(voted, tmp_path / "merged")
    assert torch.isfinite(load(out)(torch.tensor([[1, 2]])).logits).all()
    strange = difference.between(folders / "stranger", folders / "one")
    with pytest.raises(FormatError, match="two bases"):
        difference.merged([changes[0], strange], [1.0, 1.0], [])


def test_only_a_few_tensors_are_held_at_a_time(tmp_path, monkeypatch):
    """Counted: whatever the model's depth, the most bytes alive of what was read from folders are a few tensors'."""
    peaks, read = {}, source._of_entries
    for layers in (1, 6):
        base = small_model(layers=layers).float()
        save(base, tmp_path / f"base-{layers}", dtype=torch.float32)
        moved = deepcopy(base)
        with torch.no_grad():
            for weight in moved.parameters():
                weight.mul_(1.01)
        save(moved, tmp_path / f"after-{layers}", dtype=torch.float32)
        alive, most = weakref.WeakSet(), [0]

        def counting(*given, alive=alive, most=most):
            found = read(*given)
            plain = found.read

            def counted(name):
                tensor = plain(name)
                alive.add(tensor)
                most[0] = max(most[0], sum(held.nbytes for held in alive))
                return tensor

            found.read = counted
            return found

        with monkeypatch.context() as patch:
            patch.setattr(source, "_of_entries", counting)
            change = difference.between(tmp_path / f"base-{layers}", tmp_path / f"after-{layers}")
            made = difference.through(change, difference.parse(["top_magnitude:share=0.3", "round_levels"]))
            where = difference.pack(made, tmp_path / f"packed-{layers}")
            difference.apply(difference.between(tmp_path / f"base-{layers}", where), tmp_path / f"out-{layers}")
        peaks[layers] = most[0] / max(weight.nbytes for weight in base.parameters())
    assert peaks[6] == peaks[1] <= 3, peaks


def test_an_interrupted_save_leaves_nothing(folders, tmp_path):
    change = difference.between(folders / "base", folders / "one")

    def broken(name):
        if "down" in name:
            raise KeyboardInterrupt
        return plain(name)

    plain, change.coded = change.coded, broken
    with pytest.raises(KeyboardInterrupt):
        difference.pack(change, tmp_path / "packed")
    plain, change.late = change.late, broken
    with pytest.raises(KeyboardInterrupt):
        difference.apply(change, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["model", "base", "values"])
def test_a_note_that_is_missing_is_named(folders, tmp_path, key):
    change = difference.through(difference.between(folders / "base", folders / "one"), difference.parse(["compeft"]))
    notes = json.loads((difference.pack(change, tmp_path / "made") / "delta.json").read_text())
    (tmp_path / "made" / "delta.json").write_text(json.dumps({name: value for name, value in notes.items() if name != key}))
    with pytest.raises(FormatError, match=f"{key} is missing"):
        packed.read(tmp_path / "made")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["delta.json", "delta.safetensors", "index"]))
def test_any_flipped_byte_is_told_or_harmless(folders, tmp_path_factory, at, value, file):
    good = tmp_path_factory.getbasetemp() / "good"
    if not good.exists():
        change = difference.between(folders / "base", folders / "one")
        difference.pack(difference.through(change, difference.parse(["compeft"])), good)
    bad = tmp_path_factory.getbasetemp() / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(good, bad)
    path = bad / ("delta.json" if file == "delta.json" else "delta.safetensors")
    data = bytearray(path.read_bytes())
    data[at % (len(data) if file != "index" else 900)] = value
    path.write_bytes(data)
    if path.name == "delta.safetensors":  # whoever changes the file can change the hash too
        notes = json.loads((bad / "delta.json").read_text())
        (bad / "delta.json").write_text(json.dumps(notes | {"sha256": hashlib.sha256(data).hexdigest()}))
    try:
        made = packed.read(bad)
        base = load_file(folders / "base" / "model.safetensors")
        for name in made.shapes.keys() & base.keys():
            if made.shapes[name] == tuple(base[name].shape):
                assert torch.isfinite(difference.coding.decode(made.coded(name), base[name].float())).all()
    except LitheError:
        return


def test_a_small_file_cannot_ask_for_much_memory(folders, tmp_path):
    good = difference.between(folders / "base", folders / "lora", start="nothing")
    notes = packed.Notes(what="adapter", base="0" * 64, start="nothing", model=source.open_source(folders / "base").digest)
    wide = dict.fromkeys(good.before.shapes, (2**20, 2**20))
    none = ((name, difference.coding.same(2**40)) for name in wide)
    where = packed.write(tmp_path / "bomb", notes, none, wide, good.dtypes, good.papers)
    with pytest.raises(FormatError, match="can stand for"):
        difference.between(folders / "base", where)


def test_papers_of_a_stranger_become_no_other_files_and_no_other_adapter(folders, tmp_path):
    good = difference.between(folders / "base", folders / "lora")
    model = source.open_source(folders / "base").digest
    notes = packed.Notes(what="adapter", base=good.before.digest, start="fresh", model=model)
    coded = [(name, good.coded(name)) for name in good.before.shapes]
    for number, papers in enumerate(({**good.papers, "../evil.json": {}}, {**good.papers, "lithe.json": {"adapter": {
            "method": "lora:rank=4096", "seed": 3}}}, {**good.papers, "lithe.json": {"adapter": "x"}})):
        where = packed.write(tmp_path / f"bad-{number}", notes, coded, good.before.shapes, good.dtypes, papers)
        with pytest.raises(LitheError, match=r"no papers|another adapter|how this adapter began"):
            difference.between(folders / "base", where)


@pytest.mark.parametrize(("words", "code", "said"), [
    (["pakc", "a", "b"], 2, "did you mean pack"), (["pack", "BASE"], 2, "takes 2 folders, not 1"),
    (["pack", "BASE", "one"], 2, "needs --out"), (["show", "one", "--text", "x"], 2, "no use for --text"),
    (["show", "one"], 4, "no packed difference"),
    (["pack", "BASE", "one", "-o", "OUT", "--method", "top_k"], 2, "no method for diff"),
    (["pack", "BASE", "one", "-o", "two"], 2, "exists already"), (["apply", "BASE", "gone", "-o", "OUT"], 2, "no model folder"),
    (["pack", "BASE", "one", "-o", "OUT", "--start", "fresh"], 2, "an adapter"), (["merge", "BASE", "one", "two", "-o", "OUT",
     "--weight", "1"], 2, "as many weights"), (["pack", "BASE", "one", "-o", "OUT", "--method", "dare", "--valid", "x.txt"], 2,
                                               "no knob left")])  # fmt: skip
def test_what_cannot_be_is_told(folders, tmp_path, capsys, words, code, said):
    place = {"BASE": folders / "base", "one": folders / "one", "two": folders / "two", "OUT": tmp_path / "out"}
    assert run(["delta", *(str(place.get(word, word)) for word in words)]) == code
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()

"""The rack on models as they are used: compiled, packed, decoding requests apart; and folders that lie."""

import json
from copy import deepcopy

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lithe
from lithe.cli.generate import command
from lithe.contracts.adapter import fresh, logits, stir
from lithe.contracts.small import small_folder
from lithe.decode.generate import request
from lithe.decode.loop import run
from lithe.decode.plan import plan
from lithe.errors import FormatError, LitheError, UnsupportedError, UsageError
from lithe.kernels import library
from lithe.model.cache import PlainCache
from lithe.model.checkpoint import save
from lithe.model.decoder import ALL
from lithe.model.fast import fuse
from lithe.model.load import load
from lithe.tune.rack import Rack

torch.set_num_threads(1)
IDS = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
WHOLE = "adapter_model.safetensors"


@torch.no_grad()
def cached(model):
    """Logits of a pass through a cache, which is what compiled layers run."""
    return model(IDS, cache=PlainCache.like(model, batch=2), logits=ALL).scores


@pytest.mark.skipif(library.load() is None, reason="no compiler here")
def test_a_site_unfuses_its_block_and_merging_fuses_it_again():
    model = fuse(fresh().float(), "fp32")
    plain, rack = cached(model), Rack.of(model)
    assert not model.fast.why
    stir(rack.make("lora:targets=layers.1.mlp.down_proj", name="a"), 1)
    beside = cached(model)
    assert set(model.fast.why) == {1} and "Adapted" in model.fast.why[1]
    rack.merge("a")
    merged = cached(model)
    assert not model.fast.why and (merged - beside).abs().max() <= 1e-4 and (merged - plain).abs().max() > 1e-2
    rack.unmerge()
    rack.remove("a")
    assert torch.equal(cached(model), plain) and not model.fast.why


def test_a_packed_base_trains_serves_and_refuses_to_merge(tmp_path):
    model = fuse(fresh().float(), "int4", 32)
    data = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rack = Rack.of(model)
    a = rack.train(rack.make("lora:rank=2", name="a").name)
    optimizer = torch.optim.AdamW(a.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        out = model(IDS[:, :-1], logits=ALL).scores
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    before = logits(model)
    with pytest.raises(UnsupportedError, match="int4"):
        rack.merge("a")
    assert torch.equal(logits(model), before)
    rack.save("a", tmp_path / "a")
    rack.remove("a")
    assert all(torch.equal(buffer, data[name]) for name, buffer in model.named_buffers())
    rack.load(tmp_path / "a")
    assert torch.equal(logits(model), before)


def test_modules_within_modules_come_and_go_in_any_order():
    model = fresh()
    plain, rack = logits(model), Rack.of(model)
    for spec in ("bottleneck", "lora", "prefix_tuning", "prompt_tuning", "ia3"):
        stir(rack.make(spec, name=spec), 2)
    everything = dict.fromkeys(rack.adapters, 1.0)
    rack.use(everything)
    stacked = logits(model)
    rack.merge({"lora": 1.0, "ia3": 1.0})
    rest = {name: 1.0 for name in everything if name not in ("lora", "ia3")}
    rack.use(rest)
    assert (logits(model) - stacked).abs().max() <= 1e-9
    rack.unmerge()
    rack.use(everything)
    assert torch.equal(logits(model), stacked)
    twin = deepcopy(model)
    for name in ("bottleneck", "ia3", "prompt_tuning", "lora", "prefix_tuning"):
        rack.remove(name)
    assert torch.equal(logits(model), plain)
    assert torch.equal(logits(twin), stacked) and Rack.of(twin).adapters.keys() == everything.keys()


@pytest.mark.parametrize("draft", [None, "prompt_lookup"])
def test_requests_with_their_own_adapters_decode_as_alone(draft):
    model = fresh()
    rack = Rack.of(model)
    for seed, spec in enumerate(("lora", "prompt_tuning:rows=3", "dora")):
        stir(rack.make(spec, name=f"a{seed}", seed=seed), seed)
    numbers = [rack.number(wish) for wish in ("a0", None, "a1", "a2")]
    rack.use("a0")

    def texts(wanted):
        batch = [request(model, [3, 4, 5, 3, 4], max_tokens=12) for _ in wanted]
        for sequence, number in zip(batch, wanted, strict=True):
            sequence.adapter = number
        for _ in run(plan(model, draft=draft), batch):
            pass
        return [sequence.tokens for sequence in batch]

    mixed = texts(numbers)
    assert mixed == [texts([number])[0] for number in numbers]
    assert len(set(map(tuple, mixed))) > 1 and texts([None]) == [mixed[0]]


def test_recomputing_a_block_finds_its_own_rows():
    """Gradient checkpointing runs a block again after other passes have been: it must see the adapters of its own pass."""
    grads = []
    for again in (False, True):
        model = fresh()
        rack = Rack.of(model)
        for name in "ab":
            stir(rack.make("lora", name=name), ord(name))
        a = rack.train("a")
        if again:
            for block in model.layers:
                inner = block.forward
                block.forward = lambda *args, inner=inner: torch.utils.checkpoint.checkpoint(inner, *args, use_reentrant=False)
        out = model(IDS, adapters_B=[rack.number("a"), -1], logits=ALL).scores
        model(IDS, adapters_B=[-1, rack.number("b")])  # another pass before going back
        out.sum().backward()
        grads.append([weight.grad for weight in a.parameters()])
    assert all(torch.allclose(x, y) for x, y in zip(*grads, strict=True)) and any(g.abs().max() > 0 for g in grads[0])


WRONG_CALLS = [
    (lambda model, rack: model(IDS, adapters_B=[0]), "1 entries for a batch of 2"),
    (lambda model, rack: model(IDS, adapters_B=[0, 7]), "which stands for no adapter"),
    (lambda model, rack: rack.use("b"), "no adapter 'b'"),
    (lambda model, rack: rack.make("lora", name="a"), "already"),
    (lambda model, rack: rack.make("lora", name="../a"), "cannot be an adapter's name"),
    (lambda model, rack: rack.make("lora:targets=q_prj", name="b"), "q_proj"),
    (lambda model, rack: rack.make("prompt_lookup", name="b"), "builds no adapters"),
    (lambda model, rack: rack.unmerge(), "nothing is merged"),
    (lambda model, rack: (rack.merge("a"), rack.make("lora", name="b")), "a is merged into the weights"),
    (lambda model, rack: (rack.number("a"), rack.merge("a"), model(IDS, adapters_B=[0, 0])), "'a' is not attached"),
    (lambda model, rack: rack.use({"a": float("nan")}), "weight nan"),
]


@pytest.mark.parametrize("number", range(len(WRONG_CALLS)))
def test_wrong_calls_say_what_is_wrong(number):
    call, words = WRONG_CALLS[number]
    model = fresh()
    rack = Rack.of(model)
    rack.make("lora", name="a")
    with pytest.raises(UsageError, match=words):
        call(model, rack)


def test_windows_and_models_without_adapters_refuse():
    with pytest.raises(UsageError, match="no adapter is attached"):
        fresh()(IDS, adapters_B=[0, 0])
    model = fresh()
    model.windows = {8}
    with pytest.raises(UnsupportedError, match="sliding window"):
        Rack.of(model).make("prefix_tuning")


def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(tmp_path):
    model = fresh()
    rack = Rack.of(model)
    stir(rack.make("lora", name="a"), 1)
    with pytest.raises(UnsupportedError, match="merge or undo"):
        save(model, tmp_path / "m")
    rack.merge("a")
    save(model, tmp_path / "m", dtype=torch.float64)
    assert torch.equal(logits(load(tmp_path / "m", dtype=torch.float64)), logits(model))


def test_another_base_is_refused_by_its_hash_unless_asked_for(tmp_path):
    one, other = fresh(), fresh()
    with torch.no_grad():
        other.layers[1].mlp.up_proj.weight[0, 0] += 1e-9
    rack = Rack.of(one)
    stir(rack.make("lora", name="a"), 1)
    rack.save("a", tmp_path / "a")
    with pytest.raises(FormatError, match="made for other weights"):
        Rack.of(other).load(tmp_path / "a")
    Rack.of(other).load(tmp_path / "a", any_base=True)
    wider = load(small_folder(vocab=33), dtype=torch.float64, fast=False)
    with pytest.raises(FormatError, match="vocab 32; this one has 33"):
        Rack.of(wider).load(tmp_path / "a")


def test_the_command_line_takes_folders(tmp_path):
    model = lithe.load("zoo:tiny")
    rack = Rack.of(model)
    stir(rack.make("lora", name="a"), 1, 0.3)
    rack.save("a", tmp_path / "a")
    app = typer.Typer()
    app.command()(command)
    told = [CliRunner().invoke(app, ["zoo:tiny", "Once upon", "--max-tokens", "8", "--json", *more]).stdout
            for more in ([], ["--adapter", str(tmp_path / "a")])]
    assert json.loads(told[0])["tokens"] != json.loads(told[1])["tokens"]


def folder_of(tmp_path, spec):
    model = fresh()
    rack = Rack.of(model)
    stir(rack.make(spec, name="a"), 1)
    return rack.save("a", tmp_path / "a")


@pytest.mark.parametrize("spec", ["lora", "dora", "ia3", "adalora", "bitfit", "bottleneck", "prefix_tuning", "prompt_tuning"])
def test_lying_folders_are_told_from_honest_ones(spec, tmp_path):
    """Whatever is changed in a folder, loading either works or raises our error; and it never changes the model by halves."""
    folder = folder_of(tmp_path, spec)
    config = next(path for path in folder.glob("*adapter*.json"))
    said, tensors, dice = json.loads(config.read_text()), load_file(folder / WHOLE), torch.Generator().manual_seed(0)
    draw = lambda n: int(torch.randint(n, (), generator=dice))
    junk = [None, True, -1, 0, 1e308, 2**40, "", "(a+)+$", "x" * 1000, [], [1], {}, {"a": 1}, "../..", float("inf")]
    plain, refused = logits(fresh()), 0
    for round_ in range(60):
        broken, held = deepcopy(said), dict(tensors)
        if round_ % 2:
            place = broken["parts"][sorted(broken["parts"])[0]] if "parts" in broken and draw(2) else broken
            place[sorted(place)[draw(len(place))]] = junk[draw(len(junk))]
        else:
            name = sorted(held)[draw(len(held))]
            tensor = held.pop(name)
            held |= [{}, {name: tensor[:-1]}, {name: tensor.flatten()}, {f"{name}x": tensor}, {name: tensor * float("nan")},
                     {name: tensor.to(torch.int32)}, {name: tensor.expand(2, *tensor.shape).contiguous()}][draw(7)]
        config.write_text(json.dumps(broken))
        save_file(held, folder / WHOLE)
        model = fresh()
        try:
            Rack.of(model).load(folder)
            assert logits(model).isfinite().all()
        except LitheError:
            refused += 1
            assert torch.equal(logits(model), plain)
    assert refused > 20


def test_what_lies_in_a_folder_decides_how_it_is_read(tmp_path):
    folder = folder_of(tmp_path, "lora")
    data = (folder / WHOLE).read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        (folder / WHOLE).write_bytes(data[:cut])
        with pytest.raises(FormatError):
            Rack.of(fresh()).load(folder)
    (folder / WHOLE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match="pickle"):
        Rack.of(fresh()).load(folder)
    (folder / "lithe_adapter.json").write_text("{}")
    with pytest.raises(FormatError, match="both"):
        Rack.of(fresh()).load(folder)
    with pytest.raises(UsageError, match="not empty"):
        rack = Rack.of(fresh())
        rack.make("lora", name="a")
        rack.save("a", tmp_path)


def test_an_interrupted_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    """Killed while the new weights are written: the old adapter is still whole, and nothing lies beside it."""
    from lithe.tune import folder as folders

    folder = folder_of(tmp_path, "lora")
    model = fresh()
    rack = Rack.of(model)
    rack.load(folder, name="old")
    before = logits(model)
    stir(rack.make("lora", name="new"), 7)

    def killed(tensors, file, **more):
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folders, "save_file", killed)
        rack.save("new", folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    again = fresh()
    Rack.of(again).load(folder, name="old")
    assert torch.equal(logits(again), before)

"""DSEE: where its entries stand, what is pruned, and that both outlast saving, merging and resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lithe.compress import groups
from lithe.compress.change import Change
from lithe.compress.surgery import cut
from lithe.errors import FormatError, UsageError
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.ops import entries
from lithe.registry import parse
from lithe.train import memory
from lithe.train.loss import next_token
from lithe.tune.rack import Rack
from lithe.tune.targets import linears
from tests.tune.entry_runs import feed, model, resumed_equals_whole, run

SPEC = "dsee:rank=2,entries=9,prune=0.4,rounds=10"
IDS = torch.arange(20).view(2, 10)
WHOLE = "adapter_model.safetensors"


def method(spec, base):
    found = parse(spec)
    return found.entry.module.Method(found.knobs, base)


def planted():
    """A matrix of rank 2 and the places of nine entries that were made larger, though not the largest."""
    dice = torch.Generator().manual_seed(0)
    low = torch.randn(32, 2, generator=dice, dtype=torch.float64) @ torch.randn(2, 32, generator=dice, dtype=torch.float64)
    places = torch.randperm(32 * 32, generator=dice)[:9].sort().values
    more = torch.full((9,), 0.02, dtype=torch.float64)
    return (low * 0.005).view(-1).index_add(0, places, more).view(32, 32), places


def test_entries_are_of_the_number_asked_for_and_stand_on_outliers():
    base = model()
    layer, (weight, places) = linears(base)["layers.0.self_attn.q_proj"], planted()
    found = {}
    with torch.no_grad():
        layer.weight.copy_(weight)
    for support in ("outliers", "magnitude", "random"):
        made = method(f"dsee:rank=2,entries=9,support={support}", base).build(base, torch.Generator())
        part = made["layers.0.self_attn.q_proj"]
        assert len(part.idx) == 9 and (part.idx.diff() > 0).all()
        found[support] = torch.isin(part.idx.long(), places).sum().item()
    assert found["outliers"] == 9 > 6 > found["magnitude"] and found["random"] <= 2


def test_more_rounds_leave_less():
    residual = parse("dsee").entry.module.residual
    left = [residual(planted()[0], 2, rounds, torch.Generator().manual_seed(1)).abs().sum().item() for rounds in (1, 3, 10)]
    assert left[0] > left[1] > left[2] and left[2] == pytest.approx(9 * 0.02, rel=0.02)  # then the outliers alone


def test_what_trains_is_counted():
    base = model()
    for spec, entries_of in (("dsee:rank=2,entries=9", lambda n, k: 9),
                             ("dsee:rank=1,density=0.2", lambda n, k: round(0.2 * n * k) - (n + k))):
        adapter = Rack.of(base).make(spec, name=spec.replace(":", "-").replace("=", "-").replace(",", "-").replace(".", ""))
        rank = 2 if "rank=2" in spec else 1
        sides = [(layer.out_features, layer.in_features) for layer in linears(base, ("q_proj", "v_proj")).values()]
        assert adapter.size == sum(rank * (n + k) + entries_of(n, k) for n, k in sides)
    for spec in ("dsee:rank=1,density=0.01", "dsee:rank=1,entries=2000"):
        with pytest.raises(UsageError, match="entries of"):
            Rack.of(base).make(spec)


@pytest.mark.parametrize("by", ["sum", "change"])
def test_the_smallest_are_pruned_once_and_the_rest_goes_on(by):
    base, found = model(), {}
    layers = linears(base)

    def tell(step, parts, optimizers):
        if step == 3:
            for site, part in parts.items():
                change = part.matrix().detach() if hasattr(part, "matrix") else None
                weight = layers[site].weight.detach()
                score = weight if change is None else change if by == "change" else weight + change
                found[site] = score.abs().flatten(), entries.unpacked(part.pruned, weight.numel())
        if step > 3:
            assert all(torch.equal(entries.unpacked(part.pruned, len(found[site][0])), found[site][1])
                       for site, part in parts.items())
        assert (step >= 3) == all(len(part.pruned) for part in parts.values())

    run(f"{SPEC},by={by}", 9, base=base, tell=tell)
    scores, masks = (torch.cat(list(each)) for each in zip(*found.values(), strict=True))
    assert masks.sum() == round(0.4 * len(masks)) and scores[masks].max() <= scores[~masks].min() * (1 + 1e-6)


def test_pruned_and_tuned_it_is_an_adapter_like_any_other(tmp_path):
    base = model()
    rack = Rack.of(base)
    with torch.no_grad():
        plain = base(IDS).scores
    run(SPEC, 9, rack=rack, lr=0.05)
    with torch.no_grad():
        beside = base(IDS).scores
        rack.merge("a")
        merged = linears(base)["layers.0.mlp.down_proj"].weight
        part = rack.adapters["a"].parts["layers.0.mlp.down_proj"]
        assert torch.equal(merged.flatten() == 0, entries.unpacked(part.pruned, merged.numel()))
        assert (base(IDS).scores - beside).abs().max() < 1e-9 and (beside - plain).abs().max() > 1e-2
        rack.unmerge()
        rack.save("a", tmp_path / "a")
        rack.remove("a")
        assert torch.equal(base(IDS).scores, plain)
        rack.load(tmp_path / "a")
        assert torch.equal(base(IDS).scores, beside)


def test_the_way_back_goes_through_what_is_left():
    base = model()
    rack = Rack.of(base)
    adapter, _ = run(SPEC, 9, rack=rack, lr=0.05)
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    for site in ("layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"):
        module = base.get_submodule(site)
        assert torch.autograd.gradcheck(module, (x,))
    batch = feed()(0, False)[0]
    pruned = memory.kept(lambda: next_token(base, batch)[0], base)
    for part in adapter.parts.values():
        part.pruned = part.pruned[:0]
    assert pruned == memory.kept(lambda: next_token(base, batch)[0], base)  # no dense matrix waits for its gradient


HEADS = "dsee:rank=2,entries=9,prune=0.2,rounds=5,heads=0.25,targets=q_proj+o_proj"
FOUR = Config(vocab=64, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=32, tied=True)


def idle(layer=1, head=0):
    """A model of four key-value heads, one of which gives nothing to the stream."""
    base = model(FOUR)
    with torch.no_grad():
        base.get_submodule(f"layers.{layer}.self_attn.o_proj").weight[:, 16 * head : 16 * head + 16] = 0
    return base


def test_the_heads_of_the_smallest_gates_are_shut_and_stay_shut():
    seen = []

    def tell(step, parts, optimizers):
        gates = torch.cat([part.gates.detach() for part in parts.values() if part.gates is not None])
        assert len(gates) == 4 and (gates == 0).sum() == (1 if step >= 3 else 0)
        seen.append(gates.clone())

    frozen = HEADS.replace("+o_proj", "")  # nothing but the penalty reaches the gate of a head that gives nothing
    run(f"{frozen},slim=0.1", 9, base=idle(), tell=tell)
    assert seen[-1][2] == 0 and seen[1][2] < 1 and all(gates[2] == 0 for gates in seen[2:])
    assert (seen[2] != seen[-1]).sum() == 3, "the others go on"
    run(f"{frozen},slim=0", 2, base=idle(), tell=lambda step, parts, optimizers: seen.append(
        parts["layers.1.self_attn.o_proj"].gates.detach().clone()))
    assert seen[-2][0] == 1, "without the penalty it is left as it was"


def test_heads_that_are_shut_are_cut_once_merged(tmp_path):
    base = idle()
    rack = Rack.of(base)
    run(f"{HEADS},slim=0.1", 9, rack=rack, lr=0.05)
    with torch.no_grad():
        beside = base(IDS).scores
        rack.save("a", tmp_path / "a")
        rack.merge("a")
        assert (base(IDS).scores - beside).abs().max() < 1e-9
        rack.unmerge()
        rack.remove("a")
        rack.load(tmp_path / "a")
        assert torch.equal(base(IDS).scores, beside)
        gates = [part.gates for site, part in rack.adapters["a"].parts.items() if part.gates is not None]
        kept = [gates_H.nonzero().flatten() for gates_H in gates]
        rack.merge("a")
        whole = Decoder(FOUR).double()
        whole.load_state_dict({name: weight for name, weight in base.state_dict().items()})
        heads = sorted(groups.find(whole, "head"), key=lambda group: group.layer)
        small = cut(whole, [(group, Change(kept=kept_U)) for group, kept_U in zip(heads, kept, strict=True)])
        assert sum(small.config.layer(i).kv_heads for i in range(2)) == 3, "one key-value head in four is not stored"
        assert (small(IDS).scores - beside).abs().max() < 1e-9


@pytest.mark.parametrize("spec", [SPEC, HEADS])
def test_it_resumes_bit_for_bit(tmp_path, spec):
    assert resumed_equals_whole(spec, (1, 5), tmp_path, steps=6)


def test_folders_that_lie_are_told(tmp_path):
    base = Decoder(Config(vocab=64, width=32, layers=1, heads=2, kv_heads=1, ffn=48, context=32, tied=True)).init(0).double()
    rack = Rack.of(base)
    run(SPEC, 3, rack=rack)
    rack.save("a", tmp_path / "a")
    right = load_file(tmp_path / "a" / WHOLE)
    site = "layers.0.self_attn.q_proj"
    lies = {"bytes do not say": {f"{site}/pruned": right[f"{site}/pruned"][1:]},
            "end before": {f"{site}/idx": right[f"{site}/idx"] + 10**6},
            "low-rank product": {f"{site}/a": right[f"{site}/a"][:1]},
            "gates of": {f"{site}/gates": torch.ones(3, dtype=torch.float64)}}
    for said, lie in lies.items():
        save_file({name: tensor.contiguous() for name, tensor in {**right, **lie}.items()}, tmp_path / "a" / WHOLE)
        with pytest.raises(FormatError, match=said):
            rack.load(tmp_path / "a", name="b")
    save_file(right, tmp_path / "a" / WHOLE)
    config = json.loads((tmp_path / "a/lithe_adapter.json").read_text())
    config["parts"][site]["settings"]["alpha"] = "much"
    (tmp_path / "a/lithe_adapter.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="alpha"):
        rack.load(tmp_path / "a", name="b")

"""S2FT: the permutation behind it, what is selected, and what a pass really keeps."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from lithe.contracts.adapter import fresh, logits, stir
from lithe.contracts.small import small_corpus
from lithe.errors import UsageError
from lithe.model import reorder
from lithe.train import memory
from lithe.tune.rack import Rack

torch.set_num_threads(1)


def places(adapter):
    return {site: part.places.tolist() for site, part in adapter.parts.items()}


def test_coupled_heads_and_channels_change_places_and_the_function_does_not():
    model = fresh()  # 4 heads on 2 key-value heads
    plain = logits(model)
    dice = np.random.default_rng(0)
    for layer in model.layers:
        reorder.channels(layer.mlp, dice.permutation(64).tolist())
        reorder.heads(layer.self_attn, [3, 2, 0, 1])
    assert (logits(model) - plain).abs().max() <= 1e-12
    moved = deepcopy(model)
    with pytest.raises(UsageError, match="share a key-value head"):
        reorder.heads(moved.layers[0].self_attn, [0, 2, 1, 3])
    moved.layers[0].mlp.down_proj.weight.data = moved.layers[0].mlp.down_proj.weight.data.flip(1)  # one side only
    assert (logits(moved) - plain).abs().max() > 1e-2


def test_units_are_drawn_from_all_layers_and_counted():
    model = fresh()
    adapter = Rack.of(model).make("s2ft:o=0.25,down=0.1,v=0.5,up=0.05", name="a", seed=3)
    counts = {site: len(part.places) for site, part in adapter.parts.items()}
    per = lambda end: sum(count for site, count in counts.items() if site.endswith(end))
    assert (per("o_proj"), per("down_proj"), per("v_proj"), per("up_proj")) == (2 * 8, 13, 2 * 8, 6)
    assert adapter.size == 32 * (16 + 13 + 16 + 6)
    heads = [p for site, ps in places(adapter).items() if site.endswith("o_proj") for p in ps]
    assert all(p // 8 == heads[i // 8 * 8] // 8 for i, p in enumerate(heads)), "a head is trained in part"
    downs = {tuple(counts.get(f"layers.{i}.mlp.down_proj", 0) for i in (0, 1)) for seed in range(4)
             for counts in [{s: len(p.places) for s, p in Rack.of(fresh()).make("s2ft:down=0.1,o=0", seed=seed).parts.items()}]}
    assert len(downs) > 1, "layers always get the same numbers"


def test_a_share_of_the_weights_is_met():
    model = fresh()
    for share in (0.01, 0.03, 0.1):
        adapter = Rack.of(model).make(f"s2ft:share={share}", name=f"a{int(share * 100)}")
        assert abs(adapter.size - share * model.size) <= 32 * 8 / 2
    with pytest.raises(UsageError, match="nothing would be trained"):
        Rack.of(model).make("s2ft:o=0.01,down=0.001", name="none")


@pytest.mark.parametrize("select", ["weight", "activation", "product", "gradient"])
def test_selection_finds_what_was_planted(select):
    """Channels made loud are the largest; made silent, the smallest. The base is not touched by looking."""
    spec = f"s2ft:o=0,down=0.0625,select={select},corpus={small_corpus()},rows=2,length=32"
    for smallest, factor in ((False, 20.0), (True, 1e-3)):
        model = fresh()
        for layer in model.layers:
            layer.mlp.up_proj.weight.data[[5, 9, 40, 63]] *= 1 if select == "weight" else factor
            layer.mlp.down_proj.weight.data[:, [5, 9, 40, 63]] *= factor if select in ("weight", "product") else 1
        kept, before = {name: w.detach().clone() for name, w in model.named_parameters()}, logits(model)
        found = places(Rack.of(model).make(f"{spec},smallest={smallest}", name="a"))
        assert found == {f"layers.{i}.mlp.down_proj": [5, 9, 40, 63] for i in (0, 1)}
        Rack.of(model).remove("a")
        assert torch.equal(logits(model), before)
        assert all(torch.equal(w, kept[name]) and w.grad is None for name, w in model.named_parameters())


def test_what_needs_a_text_says_so():
    with pytest.raises(UsageError, match="give corpus"):
        Rack.of(fresh()).make("s2ft:select=activation")
    with pytest.raises(UsageError, match="rows of v and up have none"):
        Rack.of(fresh()).make(f"s2ft:select=activation,o=0,down=0,up=0.1,corpus={small_corpus()}")


def layer_bytes(spec):
    """What one layer of 64 inputs keeps of 512 tokens."""
    model = fresh().float()
    for weight in model.parameters():
        weight.requires_grad_(weight is model.layers[0].mlp.down_proj.weight)
    if spec is not None:
        rack = Rack.of(model)
        rack.train(rack.make(spec, name="a").name)
        model.adapters.choose(model, None, 1)
    x = torch.randn(1, 512, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return memory.kept(lambda: model.layers[0].mlp.down_proj(x * 1).sum(), model)


def test_a_layer_keeps_its_chosen_columns_only():
    """3 of 64 columns (96 values) against rank 1 (96) and all of the layer."""
    ours = layer_bytes("s2ft:o=0,down=0.046875,select=weight")
    low, full = layer_bytes("lora:rank=1,targets=layers.0.mlp.down_proj"), layer_bytes(None)
    assert 512 * 3 * 4 <= ours <= 512 * 3 * 4 + 64  # the columns, and their places
    assert low >= full == 512 * 64 * 4
    assert ours < 0.1 * low and ours < 0.25 * full


def test_adapters_of_other_channels_fuse_by_addition():
    model = fresh()
    rack = Rack.of(model)
    a, b = (rack.make("s2ft:o=0,down=0.1", name=name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    stir(a, 1)
    stir(b, 2)
    rack.use({"a": 1.0, "b": 1.0})
    both = logits(model)
    rack.merge({"a": 1.0, "b": 1.0})
    weight = model.layers[0].mlp.down_proj.weight
    plain = fresh().layers[0].mlp.down_proj.weight.clone()
    for adapter in (a, b):
        part = adapter.parts["layers.0.mlp.down_proj"]
        plain[:, part.places] += part.matrix
    assert (weight - plain).abs().max() <= 1e-12 and (logits(model) - both).abs().max() <= 1e-9

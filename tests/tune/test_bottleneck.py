"""Bottlenecks are those of the `adapters` library: its logits, kept in `oracles/`, from the same weights."""

import json
from pathlib import Path

import pytest
import torch

from lithe.model.config import Config
from lithe.model.decoder import ALL, Decoder
from lithe.tune.rack import Rack
from tests.tune.oracles.adapters_library import IDS, SHAPE, drawn

KEPT = json.loads((Path(__file__).parent / "oracles" / "adapters_library.json").read_text())["cases"]
HALVES = {"attention_adapters": "self_attn", "output_adapters": "mlp"}
WEIGHTS = {"adapter_down.0.weight": "down", "adapter_down.0.bias": "down_bias", "adapter_up.weight": "up",
           "adapter_up.bias": "up_bias"}


def base() -> Decoder:
    model = Decoder(Config(
        vocab=SHAPE["vocab_size"], width=SHAPE["hidden_size"], ffn=SHAPE["intermediate_size"],
        layers=SHAPE["num_hidden_layers"], heads=SHAPE["num_attention_heads"], kv_heads=SHAPE["num_key_value_heads"],
        norm_eps=SHAPE["rms_norm_eps"],
        context=SHAPE["max_position_embeddings"], tied=False)).double()
    own = {f"{'' if name.startswith('lm_head') else 'model.'}{name}": weight for name, weight in model.named_parameters()}
    values = drawn({name: tuple(weight.shape) for name, weight in own.items()})
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(torch.from_numpy(values[name]))
    return model


@pytest.mark.parametrize("spec", KEPT)
def test_logits_are_the_librarys(spec):
    model = base()
    adapter = Rack.of(model).make(spec, name="a")
    plain = model(torch.tensor(IDS), logits=ALL).scores[0]
    shapes = {name: tuple(shape) for name, shape in KEPT[spec]["adapter"].items()}
    with torch.no_grad():
        for name, value in drawn(shapes).items():
            _, _, layer, half, _, _, *weight = name.split(".")
            part = adapter.parts[f"layers.{layer}.{HALVES[half]}"]
            getattr(part, WEIGHTS[".".join(weight)]).copy_(torch.from_numpy(value))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == adapter.size
    ours, theirs = model(torch.tensor(IDS), logits=ALL).scores[0], torch.tensor(KEPT[spec]["logits"], dtype=torch.float64)
    assert (theirs - plain).abs().max() > 0.1, "the adapter changes nothing, so this proves nothing"
    assert (ours - theirs).abs().max() <= 1e-5

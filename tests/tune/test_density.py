"""The density loss: what it counts, that its gradient is right however the pass runs, and that what is off can be left out."""

import json

import pytest
import torch
from torch.autograd import gradcheck

from lithe.cli import run
from lithe.contracts.adapter import IDS_BT
from lithe.contracts.objective import BATCH, PLAIN, adapted
from lithe.model.config import Config
from lithe.model.decoder import Decoder
from lithe.ops.density import counted, density, skipping, threshold
from lithe.registry import find
from lithe.tune.rack import Rack
from tests.cli.folders import spoken

DICE = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 8, generator=DICE, dtype=torch.float64)


def test_it_lies_between_zero_and_one_and_its_gradient_is_its_slope():
    assert density(torch.zeros(1, 1, 4)).item() == 0 and density(torch.ones(1, 1, 4)).item() == pytest.approx(1, abs=1e-6)
    half = torch.tensor([[[0.0, 0.1, 0.0, 5.0]]])
    assert density(half).item() == pytest.approx(0.5, abs=1e-4) == counted(half).item()
    assert ((density(X) >= 0) & (density(X) <= 1)).all()
    assert gradcheck(lambda x: density(x, eps=0.3), (X.clone().requires_grad_(),))
    assert torch.allclose(density(X * 100, relative=0.1), density(X, relative=0.1))  # and relative knows no scale


def method(**knobs):
    found = find("density")
    return found.module.Method(found.knobs(**knobs), None)


def gradients(model, recompute=False, **knobs):
    ours = method(**knobs)
    ours.enter(model)
    model.train()
    model.recompute = recompute
    total, tokens = ours.loss(PLAIN)(model, BATCH)
    total.backward()
    ours.leave(model)
    return [total.detach() / tokens, *(w.grad.clone() for w in model.parameters() if w.grad is not None)]


@pytest.mark.parametrize("tap", ["activation", "product"])
def test_blocks_that_run_twice_give_the_same_and_the_count_is_the_models(tap):
    plain, twice = (gradients(adapted(), recompute, weight=2.0, eps=0.01, tap=tap) for recompute in (False, True))
    assert len(plain) > 20 and all(torch.allclose(x, y, atol=1e-12) for x, y in zip(plain, twice, strict=True))
    without = gradients(adapted(), weight=0.0)
    model, found = adapted(), []
    for block in model.layers:
        block.mlp.down_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        block.mlp.gate_proj.register_forward_hook(lambda module, args, y: found.append(torch.nn.functional.silu(y)))
    model(BATCH["ids_BT"])
    each = found[tap == "product" :: 2]
    expected = 2.0 * torch.stack([density(x, eps=0.01) for x in each]).mean().item()
    assert (plain[0] - without[0]).item() == pytest.approx(expected, rel=1e-9)


def relu_model():
    model = Decoder(Config(vocab=32, width=32, layers=2, heads=4, kv_heads=2, ffn=64, context=64, activation="relu")).double()
    model.init(0)
    return model


def steps(weight, count=40):
    model = relu_model()
    with torch.no_grad():
        for w in model.parameters():
            w.mul_(4 if w.dim() > 1 else 1)
    rack = Rack.of(model)
    rack.train(rack.make("lora:rank=4,alpha=8", name="a").name)
    ours = method(weight=weight, eps=1e-3)
    ours.enter(model)
    model.train()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(count):
        total, tokens = ours.loss(PLAIN)(model, BATCH)
        (total / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    ours.leave(model)
    seen = []
    hooks = [b.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for b in model.eval().layers]
    with torch.no_grad():
        total, tokens = PLAIN(model, BATCH)
    for hook in hooks:
        hook.remove()
    return (total / tokens).item(), torch.stack([counted(x).mean() for x in seen]).mean().item(), model, seen


def test_on_relu_fewer_channels_are_on_at_nearly_the_same_loss():
    loss, on, _, _ = steps(0.0)
    found = [steps(weight)[:2] for weight in (0.3, 0.5)]  # within the paper's grid, 0.01 to 10
    assert any(fewer <= 0.7 * on and ours <= loss * 1.03 for ours, fewer in found), (loss, on, found)


def test_channels_that_are_off_can_be_left_out():
    _, _, model, seen = steps(1.0, 10)
    x_MF, weight = seen[0].flatten(0, 1), model.layers[0].mlp.down_proj.base.weight.detach()
    out, spent = skipping(x_MF, weight)
    assert (out - x_MF @ weight.T).abs().max() <= 1e-12
    assert spent == int(counted(x_MF).mul(64).round().sum()) * 32 < x_MF.numel() * 32
    cut = threshold(X, 0.5)
    assert (cut == 0).double().mean() == pytest.approx(1 - counted(X, 0.5).mean().item())
    assert (cut[cut != 0] == X[cut != 0]).all()


def test_it_is_joined_on_the_command_line_and_the_held_out_loss_stays_the_plain_one(tmp_path, capsys):
    rows = [json.dumps({"prompt": f"{n} ", "completion": "xyz"}) + "\n" for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(rows))

    def go(method, out, *words):
        code = run(["tune", str(spoken()), "--data", str(tmp_path / "data.jsonl"), "--valid", str(tmp_path / "data.jsonl"),
                    "-o", str(tmp_path / out), "--batch-tokens", "60", "--lr", "1e-2", "--steps", "3", "--json", "--method",
                    method, *words])
        told = capsys.readouterr()
        return code, json.loads(told.out) if told.out else told.err

    _, plain = go("lora:rank=2", "plain")
    code, zero = go("lora:rank=2 + density:weight=0", "zero")
    assert code == 0 and zero["valid_loss"] == plain["valid_loss"]
    files = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("plain", "zero")]
    assert files[0] == files[1]
    code, told = go("lora:rank=2 + density:weight=3,eps=0.01", "much")
    assert code == 0 and told["loss"] > plain["loss"] + 0.5 and told["valid_loss_before"] == plain["valid_loss_before"]
    assert json.loads((tmp_path / "much" / "lithe.json").read_text())["adapter"]["method"].endswith(
        "+ tune/objective/density:weight=3,eps=0.01")
    assert go("density", "all", "--checkpointing")[0] == 0
    assert go("lora + dora", "two")[0] == 2


def test_without_a_gate_it_counts_what_up_gives():
    model = Decoder(Config(vocab=32, width=32, layers=1, heads=4, kv_heads=2, ffn=64, context=64, activation="gelu",
                           gated=False))
    model.init(0)
    ours = method(eps=1e-4)
    ours.enter(model)
    total, tokens = ours.loss(PLAIN)(model.train(), {"ids_BT": IDS_BT[:1, :-1], "targets_BT": IDS_BT[:1, 1:]})
    plain, _ = PLAIN(model, {"ids_BT": IDS_BT[:1, :-1], "targets_BT": IDS_BT[:1, 1:]})
    assert 0 < (total - plain).item() / int(tokens) <= 1

"""STABLE-RPS (row 74): how slots are read, the scaler, what equals a dense model, and what is stored."""

import json

import pytest
import torch

from lithe.compress import api
from lithe.compress.mixture import parse
from lithe.compress.recovery import recover
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.contracts.compressing import logits, text
from lithe.contracts.small import small_model
from lithe.errors import FormatError, UnsupportedError
from lithe.model import checkpoint
from lithe.model.pooled import Pooled, folded, hashed
from lithe.train.loss import next_token


def begun(words, model=None):
    """A pooled model before it is trained, and the method."""
    step, work = parse(f"recover=stable_rps:{words}"), copied(model or small_model())
    step.recover.begin(work, small_model(), text(), 0)
    return work, step.recover


@pytest.mark.parametrize(("entries", "slots", "chunk"), [(1000, 1000, 32), (1000, 999, 32), (1000, 250, 32), (1000, 77, 8),
                                                         (10, 1, 32)])
def test_slots_are_read_alike_and_a_full_array_is_one_to_one(entries, slots, chunk):
    loads = folded(entries, slots, chunk, torch.Generator().manual_seed(0)).bincount(minlength=slots)
    assert len(loads) == slots and loads.max() - loads.min() <= 1
    if entries == slots:
        assert (loads == 1).all()
        other = hashed(entries, slots, chunk, torch.Generator().manual_seed(0)).bincount(minlength=slots)
        assert other.max() > 1 and other.min() == 0  # what folding mends


def test_neighbours_stay_neighbours():
    places = folded(4096, 1024, 32, torch.Generator().manual_seed(1))
    together = (places.diff() == 1).float().mean()
    assert together > 0.95 and len(set(places[:1024].tolist())) == 1024


def test_as_many_slots_as_weights_are_the_dense_model_and_learn_like_it():
    dense = copied(small_model())
    pooled, _ = begun("times=1,steps=0")
    assert torch.allclose(logits(pooled), logits(dense), atol=1e-9)
    curves = []
    for model in (dense, pooled):
        weights = [weight for name, weight in model.named_parameters() if name != "pool.scale"]
        for weight in weights:
            weight.requires_grad_(True)
        turn, curve = torch.optim.SGD(weights, lr=0.5), []
        for step in range(8):
            ids = text().batches[step % 4]["ids_BT"]
            loss, count = next_token(model, {"ids_BT": ids, "targets_BT": torch.cat([ids[:, 1:], ids[:, :1]], 1)})
            turn.zero_grad()
            (loss / count).backward()
            turn.step()
            curve.append(float(loss.detach() / count))
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=1e-9) and curves[0][-1] < curves[0][0]


def test_the_arrays_deviation_does_not_matter_with_the_scaler():
    lost = {}
    for scaler in (True, False):
        for deviation in (0.02, 0.2):
            words = f"recover=stable_rps:times=4,start=drawn,deviation={deviation},scaler={scaler},steps=30,rate=3e-3"
            _, note = recover(copied(small_model()), small_model(), parse(words), text(), seed=0, kept=None, number=0)
            lost[scaler, deviation] = note["loss"]
    with_, without = (abs(lost[s, 0.2] / lost[s, 0.02] - 1) for s in (True, False))
    assert with_ < 0.02 and without > 3 * with_


def test_a_folder_holds_the_array_and_loads_bit_for_bit(tmp_path):
    model = copied(small_model()).float()
    found = api.compress(model, ["recover=stable_rps:times=4,steps=5"], calibration=text(), out=tmp_path / "m")
    layers = [module for module in found.model.modules() if isinstance(module, Pooled)]
    read = sum(layer.in_features * layer.out_features for layer in layers)
    slots = found.model.pool.weight.numel()
    assert slots == round(read / 4) and len(layers) == 14
    rest = sum(w.numel() for name, w in found.model.named_parameters() if not name.startswith("pool"))
    assert 0 <= found.report["bytes"] - 4 * (slots + len(layers) + rest) < 6000  # the header
    again = checkpoint.load(tmp_path / "m")
    assert torch.equal(logits(again), logits(found.model)) and torch.equal(logits(copied(again)), logits(again))
    assert torch.equal(logits(again), logits(compress(model, ["recover=stable_rps:times=4,steps=5"], text()).model))
    with pytest.raises(UnsupportedError, match="one array"):
        compress(again, ["rtn:bits=4"], text())
    own = json.loads((tmp_path / "m" / "lithe.json").read_text())
    for change, told in (({"slots": 10**9}, "as many weights"), ({"chunk": 0}, "cannot be")):
        pool = [[name, change.get(name, number)] for name, number in own["config"]["pool"]]
        (tmp_path / "m" / "lithe.json").write_text(json.dumps(own | {"config": own["config"] | {"pool": pool}}))
        with pytest.raises(FormatError, match=told):
            checkpoint.load(tmp_path / "m")


def test_a_fold_of_pretrained_weights_is_their_mean_by_slot():
    work, method = begun("times=4,steps=0,scaler=false")
    assert method.notes["most_read"] - method.notes["least_read"] <= 1
    layers = [module for module in work.modules() if isinstance(module, Pooled)]
    names = [name for name, module in work.named_modules() if isinstance(module, Pooled)]
    wanted = [small_model().get_submodule(name).weight.flatten() for name in names]
    lost = lambda: sum(float((layer.weight.flatten() - w).detach().square().sum())
                       for layer, w in zip(layers, wanted, strict=True))
    best = lost()
    with torch.no_grad():
        work.pool.weight += 1e-3 * torch.randn_like(work.pool.weight)
    assert lost() > best  # the nearest array there is

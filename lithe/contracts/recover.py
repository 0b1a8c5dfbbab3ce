"""Recovery: it begins where the model is, and what was let go stays away."""

from __future__ import annotations

from typing import Any

import torch

from lithe.compress.groups import find
from lithe.compress.masking import of_share, parts
from lithe.compress.recovery import merge, recover
from lithe.compress.run import compress
from lithe.compress.surgery import copied
from lithe.contracts import compressing as shared
from lithe.contracts.small import small_model
from lithe.model.decoder import Decoder
from lithe.registry import Entry, entries


def check_verbs(entry: Entry) -> None:
    """Run to its end it gives a finite model of the same shapes, and the dense one is as it was."""
    dense = copied(small_model())
    before = {name: tensor.clone() for name, tensor in dense.named_parameters()}
    work, _ = recover(begun(entry, sparse()), dense, shared.parse(short(entry)), shared.text(), seed=0, kept=None, number=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.named_parameters()), "it changes the dense model"
    assert torch.isfinite(shared.logits(work)).all(), "the model's logits are no numbers"


def check_zero_at_start(entry: Entry) -> None:
    """Begun and ended without a step, it changes nothing."""
    work, step = begun(entry, copied(small_model())), shared.parse(short(entry))
    before = shared.logits(work)
    assert step.recover is not None
    step.recover.begin(work, small_model(), shared.text(), 0)
    assert torch.allclose(shared.logits(work), before, rtol=0, atol=1e-12), "it begins elsewhere"
    merge(work)
    assert torch.allclose(shared.logits(work), before, rtol=0, atol=1e-12), "merged it is another model"


def check_touches_only(entry: Entry) -> None:
    """Weights that are zero before are zero after."""
    start = begun(entry, sparse())
    zero = {name: tensor == 0 for name, tensor in start.named_parameters() if tensor.dim() == 2}
    work, _ = recover(start, small_model(), shared.parse(short(entry)), shared.text(), seed=0, kept=None, number=0)
    for name, mask in zero.items():
        assert not work.get_parameter(name)[mask].any(), f"{name}: what was let go comes back"


def check_n_of_m(entry: Entry) -> None:
    """In the end every m neighbours of the sites it is about have n entries at most."""
    for pattern in ("2:4", "1:8"):
        step = shared.parse(f"recover={entry.reference}:steps=4,pattern={pattern}")
        work, _ = recover(copied(small_model()), small_model(), step, shared.text(), seed=0, kept=None, number=0)
        n, m = parts(pattern)
        assert step.recover is not None
        for group in find(work, "entry", step.recover.knobs.sites):
            weight: Any = work.get_submodule(group.sites[0]).weight
            left = (weight != 0).unflatten(1, (-1, m)).sum(-1)
            assert int(left.max()) <= n, f"{group.name}: {int(left.max())} of {m} neighbours stay where {n} may"


def begun(entry: Entry, model: Decoder) -> Decoder:
    """What the method begins with: the model, its attention as low-rank pairs where it tunes such."""
    if "pairs" not in entry.card.needs:
        return model
    first = next(other for other in entries("compress", "factorize") if not other.card.needs)
    return compress(model, [f"factorize={first.reference}:rank=5,sites=self_attn.*"]).model


def sparse() -> Decoder:
    """The small model, half of the weights of each linear layer at zero."""
    model = copied(small_model())
    for module in shared.linears(model).values():
        module.weight.data *= of_share(module.weight.detach().abs(), 0.5)
    return model


def short(entry: Entry) -> str:
    """A run of few steps; a file may say other knobs in QUICK."""
    head = entry.reference if entry.card.shelf else f"recover={entry.reference}"
    knobs = getattr(entry.module, "QUICK", {"steps": 3})
    return f"{head}:{','.join(f'{key}={value}' for key, value in knobs.items())}" if knobs else head

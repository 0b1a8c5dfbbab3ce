"""Differences of checkpoints: what methods keep of them, and that the bytes say it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lithe.registry import Entry
from lithe.tune import coding

SHAPES = {"layers.0.mlp.up_proj.weight": (24, 10), "layers.1.mlp.up_proj.weight": (24, 10),
          "layers.0.attn.o_proj.weight": (7, 9), "norm.weight": (13,), "one.bias": (1,)}


def check_verbs(entry: Entry) -> None:
    """`encode` draws from its dice alone, leaves its input, can be asked again, and its bytes read back in shape and finite."""
    for dtype in (torch.float32, torch.float64):
        for deltas in differences(dtype):
            method = ready(entry, deltas)
            state, twice = torch.get_rng_state(), []
            for _ in range(2):
                kept = {name: delta.clone() for name, delta in deltas.items()}
                twice.append(coded(method, deltas))
                assert all(torch.equal(kept[name], delta) for name, delta in deltas.items()), "it changes what it reads"
            assert torch.equal(state, torch.get_rng_state()), "it draws from torch's own generator"
            assert twice[0] == twice[1], "asked again, it codes something else"
            for name, one in twice[0].items():
                found = coding.decode(one, torch.zeros_like(deltas[name]))
                assert found.shape == deltas[name].shape and found.dtype == dtype, "what is read back has another shape or type"
                assert torch.isfinite(found).all(), "it codes what is no finite number"
            if hasattr(method, "combine"):
                _combines(method, list(deltas.values()))


def check_meets_budget(entry: Entry) -> None:
    """Never more than the asked share of all entries is kept, and just as many where all differ in size."""
    for share in (0.02, 0.2, 0.5, 1.0):
        for deltas in differences(torch.float32):
            method = ready(entry, deltas, share=share)
            kept = sum(int(coding.decode(one, torch.zeros(SHAPES[name])).count_nonzero())
                       for name, one in coded(method, deltas).items())
            most = int(share * sum(delta.numel() for delta in deltas.values()))
            assert kept <= most, f"of {most} entries allowed at share {share} it keeps {kept}"
            sizes = torch.cat([delta.flatten() for delta in deltas.values()]).abs()
            if len(sizes.unique()) == len(sizes) and sizes.min() > 0:
                assert kept == most, f"of {most} entries asked at share {share} it keeps {kept}"


def check_touches_only(entry: Entry) -> None:
    """What training left alone stays as it was, to the bit."""
    dice = torch.Generator().manual_seed(9)
    for deltas in differences(torch.float32):
        method = ready(entry, deltas)
        for name, one in coded(method, deltas).items():
            before = torch.randn(SHAPES[name], generator=dice)
            after = coding.restore(one, before)
            alone = deltas[name] == 0
            assert torch.equal(after[alone], before[alone]), "an entry moves that training did not move"


def check_level_zero_is_identity(entry: Entry) -> None:
    """At the knobs that its ZERO names nothing of a difference is left."""
    for deltas in differences(torch.float32):
        for name, one in coded(ready(entry, deltas, **entry.module.ZERO), deltas).items():
            assert not coding.decode(one, torch.zeros(SHAPES[name])).any(), f"something of {name} is left"


def differences(dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Small, with many zeros, with many equal sizes, all zero, and far apart in size."""
    dice = torch.Generator().manual_seed(1)
    draw = lambda: {name: torch.randn(shape, generator=dice, dtype=dtype) * 1e-3 for name, shape in SHAPES.items()}
    yield draw()
    yield {name: delta * (delta > 0) for name, delta in draw().items()}
    yield {name: (delta * 1e3).round() * 1e-4 for name, delta in draw().items()}
    yield {name: torch.zeros_like(delta) for name, delta in draw().items()}
    yield {name: delta * 10.0 ** (3 * number) for number, (name, delta) in enumerate(draw().items())}


def ready(entry: Entry, deltas: dict[str, Tensor], **knobs: Any) -> Any:
    """The method, once it has read a difference."""
    method = entry.module.Method(entry.knobs(**knobs))
    for turn in range(getattr(method, "turns", 0)):
        for name, delta in deltas.items():
            method.read(name, delta, turn)
    return method


def coded(method: Any, deltas: dict[str, Tensor]) -> dict[str, coding.Coded]:
    return {name: method.encode(name, delta, torch.Generator().manual_seed(5)) for name, delta in deltas.items()}


def _combines(method: Any, deltas: list[Tensor]) -> None:
    """One difference alone is itself, two alike are so in shape, and neither is written to."""
    for delta in deltas:
        kept, other = delta.clone(), -2 * delta
        assert torch.allclose(method.combine([delta], [1.0]), delta, rtol=1e-6, atol=0), "merged alone it is another difference"
        found = method.combine([delta, other], [0.5, 2.0])
        assert found.shape == delta.shape and found.dtype == delta.dtype and torch.isfinite(found).all()
        assert torch.equal(delta, kept) and torch.equal(other, -2 * kept), "it changes what it merges"

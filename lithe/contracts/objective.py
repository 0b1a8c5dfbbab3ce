"""Objectives: what a training pass computes is changed while they are in place, and nothing else ever.

All on the small float64 model with a low-rank adapter. Axes: B batch, T rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lithe import registry
from lithe.contracts.adapter import IDS_BT, fresh, logits, same, stir, weights
from lithe.contracts.resumes import check_resumes
from lithe.contracts.small import small_corpus
from lithe.model.decoder import Decoder
from lithe.registry import Entry
from lithe.train.guide import Guide
from lithe.train.loss import Chunked
from lithe.tune.rack import Rack

BATCH = {"ids_BT": IDS_BT[:, :-1], "targets_BT": IDS_BT[:, 1:]}
PLAIN = Chunked(1024)


def check_level_zero_is_identity(entry: Entry) -> None:
    """At the knobs its ZERO names, loss and gradients are those of plain training."""
    plain, ours = (gradients(entry if on else None, entry.module.ZERO) for on in (False, True))
    for x, y in zip(plain, ours, strict=True):
        off = (x - y).abs().max().item()
        assert off <= 1e-9, f"at level zero a gradient or the loss differs by {off:.3g}"


def check_verbs(entry: Entry) -> None:
    """A training pass gives a sum and its tokens; evaluated, the model is the plain one; when it is over nothing is left.

    A run that was killed goes on bit for bit.
    """
    model = adapted()
    plain, kept, names = logits(model), weights(model), [name for name, _ in model.named_modules()]
    method = made(entry, model)
    if hasattr(method, "enter"):
        method.enter(model)
    loss = method.loss(PLAIN)
    model.train()
    total, tokens = loss(model, BATCH)
    assert total.dim() == 0 and torch.isfinite(total) and int(tokens) == BATCH["targets_BT"].numel()
    total.backward()
    assert any(w.grad is not None and w.grad.any() for w in model.parameters() if w.requires_grad), "nothing is learned"
    model.eval()
    with torch.no_grad():
        assert torch.equal(loss(model, BATCH)[0], PLAIN(model, BATCH)[0]), "the held-out loss is not the plain one"
    assert torch.equal(logits(model), plain), "while it is in place, the model gives other logits when evaluated"
    if hasattr(method, "leave"):
        method.leave(model)
    assert [name for name, _ in model.named_modules()] == names and same(weights(model), kept), "it leaves traces"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "it leaves hooks"
    check_resumes(lambda: begun(entry))


def begun(entry: Entry) -> tuple[Decoder, Guide]:
    """The model that is to be tuned for it."""
    model = adapted()
    method = made(entry, model)
    if hasattr(method, "enter"):
        method.enter(model)
    adapter = Rack.of(model).adapters["a"]
    return model, Guide(adapter.method, adapter.parts, [method])


def adapted() -> Decoder:
    """The small model with a low-rank adapter that has moved."""
    model = fresh()
    baseline = next(e for e in registry.entries("tune", "adapter") if e.card.row is None and "rank" in
                    e.module.Knobs.__dataclass_fields__)
    adapter = Rack.of(model).make(baseline.reference, name="a")
    stir(adapter, 1)
    Rack.of(model).train("a")
    return model


def made(entry: Entry, model: Decoder, **knobs: Any) -> Any:
    """The method with these knobs, and a text where it wants one."""
    if "corpus" in entry.module.Knobs.__dataclass_fields__:
        knobs["corpus"] = str(small_corpus())
    if "block" in entry.module.Knobs.__dataclass_fields__:
        knobs["block"] = 2  # of the few rows here
    return entry.module.Method(entry.knobs(**knobs), model)


def gradients(entry: Entry | None, knobs: dict[str, Any]) -> list[Tensor]:
    """The loss and all gradients of one training pass."""
    model = adapted()
    loss = PLAIN
    if entry is not None:
        method = made(entry, model, **knobs)
        if hasattr(method, "enter"):
            method.enter(model)
        loss = method.loss(PLAIN)
    model.train()
    total, tokens = loss(model, BATCH)
    (total / tokens).backward()
    return [total.detach(), *(w.grad for w in model.parameters() if w.grad is not None)]

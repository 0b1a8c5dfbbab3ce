"""Adapters: what changes, what does not, and what comes back. C1 to C8 are the invariants of every tuning method.

All on the small float64 model, so that a difference is a fault and not rounding. Axes: B batch, T rows, V vocabulary.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lithe.contracts.resumes import check_resumes
from lithe.contracts.small import small_model
from lithe.errors import UnsupportedError
from lithe.model.cache import PlainCache
from lithe.model.decoder import ALL, Decoder
from lithe.registry import Entry
from lithe.train.guide import Guide
from lithe.tune.rack import Adapter, Rack

EXACT = 1e-9
IDS_BT = torch.randint(0, 32, (4, 10), generator=torch.Generator().manual_seed(3))
STEPS = 50


def check_zero_at_start(entry: Entry) -> None:
    """C1. A fresh adapter changes no logit."""
    model = fresh()
    plain = logits(model)
    Rack.of(model).make(entry.reference, name="a")
    off = (logits(model) - plain).abs().max().item()
    assert off <= 1e-12, f"before training it moves a logit by {off:.3g}"


def check_merge_equals_wrap(entry: Entry) -> None:
    """C2, C3. Merged alone, weighed and stacked it computes what it does beside the weights; then the base is back, bitwise."""
    model = fresh()
    plain, kept = logits(model), weights(model)
    rack = Rack.of(model)
    for name, seed in (("a", 1), ("b", 2)):
        stir(rack.make(entry.reference, name=name, seed=seed), seed)
    for wish in ({"a": 1.0}, {"a": 0.3}, {"a": 1.0, "b": -0.5}):
        rack.use(wish)
        beside = logits(model)
        rack.merge(wish)
        off = (logits(model) - beside).abs().max().item()
        assert off <= EXACT, f"merged as {wish} it differs by {off:.3g}"
        rack.unmerge()
        assert torch.equal(logits(model), beside), "after unmerging the adapter computes something else"
    rack.use(None)
    assert torch.equal(logits(model), plain) and same(weights(model), kept), "unmerging does not give the base back"


def check_touches_only(entry: Entry) -> None:
    """C6. Steps of AdamW with weight decay move the adapter, and not a bit of the base."""
    model = deepcopy(small_model(layers=1))
    plain, kept = logits(model), weights(model)
    rack = Rack.of(model)
    adapter = rack.make(entry.reference, name="a")
    first = logits(model)
    tuned(rack, adapter, STEPS)
    assert (logits(model) - first).abs().max() > 1e-6, "training moves nothing"
    rack.remove("a")
    assert same(weights(model), kept), "an entry of the base has changed"
    assert torch.equal(logits(model), plain), "with the adapter off, the model is another one"


def check_verbs(entry: Entry) -> None:
    """Parts are drawn from the dice alone and counted right (C4), train (C7), save (C5), and serve requests apart (C8).

    A run that was killed goes on bit for bit.
    """
    model = fresh()
    plain, rack = logits(model), Rack.of(model)
    state = torch.get_rng_state()
    a, b, c = (rack.make(entry.reference, name=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(state, torch.get_rng_state()), "build draws from torch's own generator"
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)), "one seed gives two adapters"
    assert a.size == a.method.size(model), f"it trains {a.size} values, its size says {a.method.size(model)}"
    slopes(rack, a)
    stir(a, 4)
    stir(c, 5)
    _saves(rack, a, model)
    _serves(rack, model, plain)
    check_resumes(lambda: begun(entry))
    if "merge_equals_wrap" not in entry.card.promises:
        try:
            rack.merge("a")
        except UnsupportedError:
            return
        raise AssertionError("it merges without a word, but its card does not promise that this equals the adapter")


def _saves(rack: Rack, adapter: Adapter, model: Decoder) -> None:
    rack.use(adapter.name)
    before = logits(model)
    with tempfile.TemporaryDirectory() as folder:
        rack.save(adapter.name, Path(folder) / "it")
        rack.load(Path(folder) / "it", name="back")
    assert torch.equal(logits(model), before), "saved and loaded it gives other logits"


def _serves(rack: Rack, model: Decoder, plain_BTV: Tensor) -> None:
    """A batch of different wishes gives each row what it gets alone, in one pass and through a cache; the base stays itself."""
    wishes = ["a", None, {"c": 0.5} if _weighs(rack) else "c", {"c": 1.0, "a": 1.0}]
    numbers = [rack.number(wish) for wish in wishes]  # type: ignore[arg-type]
    alone = torch.cat([model(IDS_BT[i : i + 1], adapters_B=[n], logits=ALL).scores for i, n in enumerate(numbers)]).detach()
    assert (alone[1] - plain_BTV[1]).abs().max() <= 1e-12, "the base's row is not the base's"
    with torch.no_grad():
        mixed = model(IDS_BT, adapters_B=numbers, logits=ALL).scores
        cache = PlainCache.like(model, batch=len(IDS_BT))
        parts = []
        for i, j in ((0, 6), (6, 7), (7, 10)):
            parts.append(model(IDS_BT[:, i:j], cache=cache, adapters_B=numbers, logits=ALL).scores)
            cache.commit([j - i] * len(IDS_BT))
    off = max((mixed - alone).abs().max().item(), (torch.cat(parts, 1) - alone).abs().max().item())
    assert off <= EXACT, f"in a mixed batch a row differs by {off:.3g} from itself alone"


def _weighs(rack: Rack) -> bool:
    """Whether this kind can be weighed: rows before the text are there or not."""
    try:
        rack.model(IDS_BT, adapters_B=[rack.number({"c": 0.5})] * len(IDS_BT))
    except UnsupportedError:
        return False
    return True


def slopes(rack: Rack, adapter: Adapter, tries: int = 4) -> None:
    """C7. The gradient along random directions is the slope of the loss, by central differences.

    What a part's gradient takes for constant by design is held.
    """
    rack.train(adapter.name)
    rack.use(adapter.name)
    stir(adapter, 6, 0.02)
    own, dice = list(adapter.parameters()), torch.Generator().manual_seed(7)
    loss(rack.model).backward()
    holding: list[Any] = [part for part in adapter.parts.values() if hasattr(part, "held")]
    for part in holding:
        part.held = True
    assert all(weight.grad is not None for weight in own), "a weight of the adapter gets no gradient"
    for _ in range(tries):
        ways = [torch.randn(weight.shape, generator=dice, dtype=weight.dtype) for weight in own]
        along = sum((weight.grad * way).sum().item() for weight, way in zip(own, ways, strict=True) if weight.grad is not None)
        slope = (_at(rack.model, own, ways, 1e-6) - _at(rack.model, own, ways, -1e-6)) / 2e-6
        near = abs(slope - along) <= 1e-5 * max(1.0, abs(slope))
        assert near, f"the loss's slope is {slope:.8g}, the gradient says {along:.8g}"
    for part in holding:
        part.held = False
    for weight in own:
        weight.grad = None


@torch.no_grad()
def _at(model: Decoder, own: list, ways: list[Tensor], step: float) -> float:
    """The loss some way off."""
    for weight, way in zip(own, ways, strict=True):
        weight.add_(way, alpha=step)
    found = loss(model).item()
    for weight, way in zip(own, ways, strict=True):
        weight.sub_(way, alpha=step)
    return found


def begun(entry: Entry) -> tuple[Decoder, Guide]:
    """A model with a fresh adapter that is to be trained."""
    model = deepcopy(small_model(layers=1))
    rack = Rack.of(model)
    rack.make(entry.reference, name="a", seed=1)
    adapter = rack.train("a")
    return model, Guide(adapter.method, adapter.parts)


def tuned(rack: Rack, adapter: Adapter, steps: int) -> None:
    """A few steps as a trainer takes them, the method's own verbs included."""
    rack.train(adapter.name)
    method, own = adapter.method, list(adapter.parameters())
    optimizer = torch.optim.AdamW(own, lr=1e-2, weight_decay=0.1)
    verb = lambda name, *given: getattr(method, name)(adapter.parts, *given) if hasattr(method, name) else None
    verb("begin", steps)
    for step in range(1, steps + 1):
        penalty = verb("penalty")
        (loss(rack.model, rows=4) + (0.0 if penalty is None else penalty)).backward()
        verb("observe", step)
        optimizer.step()
        verb("update", step, [optimizer])
        optimizer.zero_grad()
    verb("finish")


def loss(model: Decoder, rows: int = 10) -> Tensor:
    """Mean cross-entropy of the next token on a fixed batch."""
    logits_BTV = model(IDS_BT[:, : rows - 1], logits=ALL).scores
    return F.cross_entropy(logits_BTV.flatten(0, 1), IDS_BT[:, 1:rows].flatten())


def fresh() -> Decoder:
    """The small model, to be changed."""
    return deepcopy(small_model())


@torch.no_grad()
def logits(model: Decoder) -> Tensor:
    return model(IDS_BT, logits=ALL).scores


@torch.no_grad()
def stir(adapter: Adapter, seed: int, size: float = 0.1) -> None:
    """Move every weight, as training would."""
    dice = torch.Generator().manual_seed(seed)
    for weight in adapter.parameters():
        weight.add_(size * torch.randn(weight.shape, generator=dice, dtype=weight.dtype))


def weights(model: Decoder) -> dict[str, Tensor]:
    """Copies of a model's own weights, adapters' left out."""
    return {name.replace(".base.", "."): weight.detach().clone() for name, weight in model.named_parameters()
            if ".parts." not in name}


def same(now: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)

"""Changes: what becomes of a group at a level. First as a mask, in the shapes of before, then as it is stored.

Axes: N outputs, K inputs, R rank, U units, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lithe.compress.groups import Group
from lithe.errors import FormatError, UnsupportedError
from lithe.model.adapted import remade
from lithe.model.blocks import of_pair, product
from lithe.model.decoder import Decoder
from lithe.model.linear import Ranged
from lithe.model.narrow import RANGES, Narrow, layer, of_levels
from lithe.model.site import Site


@dataclass
class Change:
    """By site: new weights [N, K] and biases [N] in the shapes of before; whole-number levels [N, K] with scales [N, G]; pairs
    A [R, K], B [N, R], or blocks of such (model/blocks.py); matrices packed already, for forms that levels cannot say; ranges
    of inputs that are rounded, as (bits, low, step). kept: the units [U] that stay of a group that is cut, ascending. Without
    anything: as it was.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    levels: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    packed: dict[str, Narrow] = field(default_factory=dict)
    ranges: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        flat = {f"weights/{site}": w for site, w in self.weights.items()} | {f"biases/{s}": b for s, b in self.biases.items()}
        flat |= {f"ranges/{site}": three for site, three in self.ranges.items()}
        for name in ("levels", "pairs"):
            flat |= {f"{name}/{i}/{site}": two[i] for site, two in getattr(self, name).items() for i in (0, 1)}
        flat |= {f"packed/{p.kind}/{p.n}/{p.k}/{p.group}/{site}": p.data for site, p in self.packed.items()}
        flat |= {} if self.kept is None else {"kept": self.kept}
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in flat.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Change:
        """Read what `save` wrote."""
        flat, made = load_file(path), cls()
        made.kept = flat.pop("kept", None)
        for name, tensor in flat.items():
            kind, _, site = name.partition("/")
            if kind in ("weights", "biases", "ranges"):
                getattr(made, kind)[site] = tensor
            elif kind == "packed":
                how, n, k, group, site = site.split("/")
                made.packed[site] = Narrow(tensor, how, int(n), int(k), int(group))
            elif kind in ("levels", "pairs") and site[:2] == "0/":
                getattr(made, kind)[site[2:]] = (tensor, flat[f"{kind}/1/{site[2:]}"])
            elif site[:2] != "1/":
                raise FormatError(f"{path} holds {name!r:.80}, which is no part of a change")
        return made


def put(model: Decoder, group: Group, change: Change) -> dict[str, nn.Module]:
    """Put a change in place in the shapes of before; gives the old modules back, for `undo`."""
    new: dict[str, tuple[Tensor, Tensor | None]] = {}
    for site in {**change.weights, **change.biases, **change.levels, **change.pairs, **change.packed}:
        module: Any = model.get_submodule(site)
        new[site] = (_weight(change, site, module), change.biases.get(site, module.bias))
    if change.kept is not None and len(change.kept) < group.units:
        new |= {site: _masked(model, group, change.kept, site, new.get(site)) for site in group.sites}
    made = {site: remade(model.get_submodule(site), weight.detach(), bias) for site, (weight, bias) in new.items()}
    for site, (bits, low, step) in ((site, three.tolist()) for site, three in change.ranges.items()):
        made[site] = Ranged(made.get(site, model.get_submodule(site)), int(bits), low, step)
    return {site: Site(site, model).swap(module) for site, module in made.items()}


def undo(model: Decoder, before: dict[str, nn.Module]) -> None:
    """Put the modules back that `put` replaced."""
    for site, module in before.items():
        Site(site, model).swap(module)


def dequantized(levels_NK: Tensor, scale_NG: Tensor) -> Tensor:
    """Levels times scales; the group is what the count of scales tells, as in kernels/pack.py."""
    k = levels_NK.shape[1]
    group = width_of(k, scale_NG.shape[1])
    wide_NK = scale_NG.float().repeat_interleave(group, dim=1)[:, :k]
    return levels_NK.float() * wide_NK


def width_of(inputs: int, scales: int) -> int:
    """How many inputs share a scale, where a row of so many inputs has so many."""
    return next((g for g in (32, 128) if -(-inputs // g) == scales), -(-inputs // scales))


def store(model: Decoder, done: Sequence[tuple[Group, Change]]) -> None:
    """Put levels in as packed weights and pairs as two matrices: what masks stood for. Units are cut by `surgery.cut`."""
    ranks, ranged, blocks = dict(model.config.ranks), dict(model.config.inputs), dict(model.config.blocks)
    for _, change in done:
        for site, (levels_NK, scale_NG) in change.levels.items():
            if (kind := kind_of(levels_NK)) is None:
                raise UnsupportedError(f"{site}: its levels go beyond {', '.join(RANGES)}, so there is no packed form of it")
            _pack(model, site, of_levels(levels_NK, scale_NG, kind))
        for site, matrix in change.packed.items():
            _pack(model, site, matrix)
        ranged |= {site: int(three[0]) for site, three in change.ranges.items()}
        for site, (a_RK, b_NR) in change.pairs.items():
            old = _module(model, site)
            pair = of_pair(a_RK.to(old.weight.dtype), b_NR.to(old.weight.dtype), old.bias)
            Site(site, model).swap(pair)
            ranks[site] = pair.rank
            blocks |= {f"{site}.{half}": len(t) for half, t in (("a", a_RK), ("b", b_NR)) if t.dim() == 3}
    made = {name: tuple(sorted(held.items())) for name, held in (("ranks", ranks), ("inputs", ranged), ("blocks", blocks))}
    if any(made[name] != getattr(model.config, name) for name in made):  # fused layouts cannot tell pieces apart
        model.config = model.config.replace(**made, family="llama")


def kind_of(levels_NK: Tensor) -> str | None:
    """The narrowest packed kind that holds these levels."""
    low, high = int(levels_NK.min()), int(levels_NK.max())
    fits = [kind for kind, (least, most) in RANGES.items() if least <= low and high <= most]
    return min(fits, key=lambda kind: RANGES[kind][1] - RANGES[kind][0], default=None)


def _pack(model: Decoder, site: str, matrix: Any) -> None:
    place = f"{site}.base" if isinstance(_module(model, site), Ranged) else site
    Site(place, model).swap(layer(matrix, _module(model, site).bias))


def _module(model: Decoder, site: str) -> Any:
    return model.get_submodule(site)


def _weight(change: Change, site: str, module: Any) -> Tensor:
    if site in change.levels:
        return dequantized(*change.levels[site])
    if site in change.pairs:
        a_RK, b_NR = change.pairs[site]
        return product(a_RK, b_NR)
    if site in change.packed:
        return change.packed[site].weight()
    return change.weights.get(site, module.weight)


def _masked(model: Decoder, group: Group, kept_U: Tensor, site: str, new: tuple[Tensor, Tensor | None] | None,
            ) -> tuple[Tensor, Tensor | None]:
    """A site's weight and bias with everything of the units that go at zero."""
    module = _module(model, site)
    weight_NK, bias_N = new or (module.weight, module.bias)
    rows, columns = lanes(model, group, kept_U, site)
    mask_NK = torch.zeros_like(weight_NK)
    mask_NK[rows[:, None], columns] = 1
    if bias_N is not None and len(rows) < len(bias_N):
        bias_N = torch.zeros_like(bias_N).index_copy(0, rows, bias_N[rows])
    elif bias_N is not None and not len(kept_U):
        bias_N = torch.zeros_like(bias_N)
    return torch.where(mask_NK.bool(), weight_NK, 0.0), bias_N


def lanes(model: Decoder, group: Group, kept_U: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """The outputs and the inputs of a site that stay with these units of its group."""
    module, leaf, gone = _module(model, site), site.rpartition(".")[2], len(kept_U) == 0
    every = lambda count: torch.arange(0 if gone else count)
    if group.unit == "channel":
        return (every(module.out_features), kept_U) if leaf == "down_proj" else (kept_U, every(module.in_features))
    if group.unit == "head":
        shape = model.config.layer(group.layer)
        wide = shape.head_dim * (shape.heads // shape.kv_heads if leaf in ("q_proj", "o_proj") else 1)
        own = (kept_U[:, None] * wide + torch.arange(wide)).flatten()
        return (every(module.out_features), own) if leaf == "o_proj" else (own, every(module.in_features))
    return every(module.out_features), every(module.in_features)

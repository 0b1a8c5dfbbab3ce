"""Linear layers whose weights are all read from one array: W[i] = scale(layer) * sign(i) * A[place(i)].

Places and signs follow from a seed, so a folder holds the array and a scale a layer.

Axes: M slots of the array, L entries of all layers one after another, N outputs, K inputs, S layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError

WORDS = ("slots", "seed", "chunk", "hashed")  # of Config.pool beside the layers' names; seed is counted from 1
MOST = 2**31 - 1


def folded(entries: int, slots: int, chunk: int, dice: torch.Generator) -> Tensor:
    """Places [L]: the axis is cut into stretches of M, each laid onto the array by a permutation of its chunks and a circular
    shift of its own, so that no slot is read more than once oftener than another (Desai and Shrivastava 2024, section 5)."""
    starts = torch.arange(0, slots, chunk)
    places = []
    for _ in range(0, entries, slots):
        order = starts[torch.randperm(len(starts), generator=dice)]
        laid_M = (order[:, None] + torch.arange(chunk)).flatten()
        laid_M = laid_M[laid_M < slots]
        places.append((laid_M + int(torch.randint(slots, (), generator=dice))) % slots)
    return torch.cat(places)[:entries]


def hashed(entries: int, slots: int, chunk: int, dice: torch.Generator) -> Tensor:
    """Places [L]: each chunk anywhere in the array (ROAST)."""
    first = torch.randint(max(1, slots - chunk + 1), (-(-entries // chunk),), generator=dice)
    return ((first[:, None] + torch.arange(chunk)).flatten() % slots)[:entries]


def layout(pool: dict[str, int], entries: int) -> tuple[Tensor, Tensor]:
    """Places and signs [L]."""
    dice = torch.Generator().manual_seed(pool["seed"])
    places_L = (hashed if pool.get("hashed") else folded)(entries, pool["slots"], pool["chunk"], dice)
    return places_L, torch.randint(2, (entries,), generator=dice) * 2 - 1


class Pool(nn.Module):
    """The array. weight: its values [M], each over `unit` of its slot while it trains; scale [S]: of each layer."""

    unit: Tensor | None

    def __init__(self, slots: int, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(slots))
        self.scale = nn.Parameter(torch.ones(layers), requires_grad=False)
        self.register_buffer("unit", None, persistent=False)

    def values(self) -> Tensor:
        """The array as layers read it."""
        return self.weight if self.unit is None else self.weight * self.unit

    @torch.no_grad()
    def settle(self) -> None:
        """Hold the array itself, as it is stored."""
        self.weight.data = self.values().detach().clone()
        self.unit = None


class Pooled(nn.Module):
    """A linear layer that reads its weights from a pool."""

    places: Tensor
    signs: Tensor

    def __init__(self, old: nn.Linear, pool: Pool, number: int, places_L: Tensor, signs_L: Tensor):
        super().__init__()
        self.in_features, self.out_features, self.number = old.in_features, old.out_features, number
        self._pool = (pool,)  # in a tuple: the array stays the decoder's alone
        self.bias = old.bias
        self.register_buffer("places", places_L.view(self.out_features, self.in_features), persistent=False)
        self.register_buffer("signs", signs_L.view(self.out_features, self.in_features).to(torch.int8), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The matrix [N, K], made anew."""
        (pool,) = self._pool
        return pool.values()[self.places] * self.signs * pool.scale[self.number]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def pool_layers(model: Any, settings: tuple[tuple[str, int], ...]) -> list[Pooled]:
    """Let linear layers read from one array, which the model gets as `pool`. Raises FormatError for what cannot be."""
    said = {name: number for name, number in settings if name in WORDS}
    sites = [name for name, _ in settings if name not in WORDS]
    modules = dict(model.named_modules())
    if missing := [name for name in sites if type(modules.get(name)) is not nn.Linear]:
        raise FormatError(f"config: {missing[0]!r:.80} is no linear layer, so it reads from no pool")
    sizes = [modules[name].in_features * modules[name].out_features for name in sites]
    if not sites or {"slots", "seed", "chunk"} - said.keys() or not said["slots"] <= sum(sizes) <= MOST:
        raise FormatError(f"config: pool must tell slots, seed and chunk, and layers of as many weights at least: {said}")
    device = modules[sites[0]].weight.device
    with torch.device("cpu"):
        places_L, signs_L = layout(said, sum(sizes))
        made = zip(sites, places_L.split(sizes), signs_L.split(sizes), strict=True)
    model.pool = Pool(said["slots"], len(sites)).to(device)
    layers = []
    for number, (name, places, signs) in enumerate(made):
        place, _, leaf = name.rpartition(".")
        layers.append(Pooled(modules[name], model.pool, number, places, signs))
        setattr(modules[place], leaf, layers[-1])
    return layers

"""What is true of a whole difference, or of a named group of its tensors, gathered tensor by tensor in a few turns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**20
SCOPES = ("all", "kind", "tensor")
TURNS = 3


def group(name: str, scope: str) -> str:
    """Which tensors are looked at together: all, those of one kind (the last two parts of their names), or each alone."""
    return {"all": "", "kind": ".".join(name.split(".")[-2:]), "tensor": name}[scope]


class Whole:
    """Spread, and the largest entries by exact rank: `share` of them, never more, zeros never. Entries of the same size go by
    the order in which tensors come, then by place. Read everything once a turn, TURNS times, in one order."""

    def __init__(self, share: float):
        self.share, self.size, self.sum, self.squares = share, 0, 0.0, 0.0
        self.counts = torch.zeros(2**16, dtype=torch.int64)  # by the upper half of a float's bits, which order as sizes do
        self.finer = torch.zeros(2**16, dtype=torch.int64)  # within one of these, by the lower half
        self.bin, self.room = -1, 0
        self.edge, self.ties = -1, 0  # the least size that is kept, as bits; how many of just that size
        self.quota: dict[str, int] = {}
        self.kept, self.kept_sum = 0, 0.0

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        if turn == 0:
            self.size += delta.numel()
        elif turn == 1 and self.bin < 0:
            self.bin, self.room = _reach(self.counts, int(self.share * self.size))
        elif turn == 2 and self.edge < 0:
            low, self.ties = _reach(self.finer, self.room)
            self.edge = max(1, (self.bin << 16) + low)
        for bits, values in _pieces(delta):
            if turn == 0:
                self.counts += torch.bincount(bits >> 16, minlength=2**16)
                wide = values.double()
                self.sum, self.squares = self.sum + wide.sum().item(), self.squares + wide.square().sum().item()
            elif turn == 1:
                self.finer += torch.bincount(bits[bits >> 16 == self.bin] & 0xFFFF, minlength=2**16)
            else:
                equal = int((bits == self.edge).sum())
                self.quota[name] = self.quota.get(name, 0) + min(equal, self.ties)
                self.ties -= min(equal, self.ties)
                sizes = values.double().abs()[bits > self.edge]
                self.kept, self.kept_sum = self.kept + len(sizes), self.kept_sum + sizes.sum().item()

    @property
    def mean(self) -> float:
        """The mean size of the largest entries."""
        return self._kept_sizes() / max(1, self.kept + sum(self.quota.values()))

    @property
    def along(self) -> float:
        """The one size of the largest entries with which their signs reach as far along the whole as it does itself."""
        return self.squares / (self._kept_sizes() or 1.0)

    def _kept_sizes(self) -> float:
        edge = torch.tensor(max(0, self.edge), dtype=torch.int32).view(torch.float32).item()
        return self.kept_sum + sum(self.quota.values()) * edge

    @property
    def deviation(self) -> float:
        """The standard deviation of all entries."""
        mean = self.sum / max(1, self.size)
        return math.sqrt(max(0.0, self.squares - self.size * mean * mean) / max(1, self.size - 1))

    def largest(self, name: str, delta: Tensor) -> Tensor:
        """Which entries of this tensor are among them, as a mask."""
        quota, found = self.quota.get(name, 0), []
        for bits, _ in _pieces(delta):
            equal = bits == self.edge
            found.append((bits > self.edge) | (equal & (equal.cumsum(0) <= quota)))
            quota -= min(quota, int(equal.sum()))
        return torch.cat(found).view(delta.shape) if found else torch.zeros_like(delta, dtype=torch.bool)


class Groups:
    """The wholes of a difference's groups."""

    def __init__(self, share: float, scope: str):
        self.share, self.scope = share, scope
        self.held: dict[str, Whole] = {}

    def read(self, name: str, delta: Tensor, turn: int) -> None:
        if self.scope != "tensor":  # of which one tensor tells all
            self.held.setdefault(group(name, self.scope), Whole(self.share)).read(name, delta, turn)

    def of(self, name: str, delta: Tensor) -> Whole:
        if self.scope != "tensor":
            return self.held[group(name, self.scope)]
        whole = Whole(self.share)
        for turn in range(TURNS):
            whole.read(name, delta, turn)
        return whole


def _pieces(delta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a tensor as the bits of its sizes in float32, which rank as the sizes do, and as they are."""
    flat = delta.detach().flatten()
    for start in range(0, len(flat), CHUNK):
        values = flat[start : start + CHUNK]
        yield values.float().abs().view(torch.int32).long(), values


def _reach(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin, from the top, in which the wanted-th entry lies, and how many of those wanted lie in it."""
    above = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(above, max(1, wanted)))
    if at >= len(counts):
        return 0, 0
    top = len(counts) - 1 - at
    return top, max(0, wanted - (int(above[at]) - int(counts[top])))

"""What a method holds beside its target: weights, caches, tables, counted where they lie and once each."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)  # these hold nothing
LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), type)


def held_mb(parts: Iterable[Any], beside: Iterable[Any]) -> float:
    """Megabytes reachable from `parts` that are not reachable from `beside`: of tensors and arrays whole, of Python's lists,
    dictionaries and sets their own size and their numbers'. Storage that several share counts once."""
    mine = list(parts)
    own = {id(each) for part in mine if (each := getattr(part, "compiled", None)) is not None}  # a cache's rounds in C name it
    met, alive = set(own), list[Any]()
    _walk(list(beside), met, alive)
    return _walk(mine, met - own, alive) / 1e6


def _walk(waiting: list[Any], met: set[int], alive: list[Any]) -> int:
    """Bytes of all that was not met before; met grows. alive: what was met, since what is freed leaves its number to others."""
    total = 0
    while waiting:
        alive.append(each := waiting.pop())
        if isinstance(each, Tensor):
            total += _once(each.untyped_storage().data_ptr(), each.untyped_storage().nbytes(), met)
        elif isinstance(each, np.ndarray):
            base = each
            while isinstance(base.base, np.ndarray):
                base = base.base
            total += _once(base.__array_interface__["data"][0], base.nbytes, met)
        elif isinstance(each, LEAVES) or (callable(each) and not isinstance(each, nn.Module)) or not _once(id(each), 1, met):
            continue
        else:
            inside, size = _inside(each)
            waiting += inside
            total += size
    return total


def _once(place: int, size: int, met: set[int]) -> int:
    if place in met:
        return 0
    met.add(place)
    return size


def _inside(each: Any) -> tuple[list[Any], int]:
    """What an object refers to, and its own bytes where it is a container of the language."""
    if isinstance(each, WEAK):
        return [], 0
    if isinstance(each, Mapping):
        return [*each.keys(), *each.values()], sys.getsizeof(each, 0)
    if isinstance(each, (list, tuple, set, frozenset)):
        return list(each), sys.getsizeof(each)
    if isinstance(each, nn.Module):
        return [*each.parameters(), *each.buffers(), each.__dict__], 0
    slots = [getattr(each, name, None) for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    return [getattr(each, "__dict__", {}), *slots], 0

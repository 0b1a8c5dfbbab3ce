"""How the difference of one tensor is written: a form, a few numbers, bytes. Bytes are read back without trusting them.

| form | what is written |
|---|---|
| same | nothing: no value differs |
| exact | the bits of before and after, one exclusive-or the other, by planes of bytes, deflated: `after` to the bit |
| floats | every value |
| kept | the positions that differ, and their values |
| drawn | the values at positions that a seed draws |
| signs | positions and signs; all values have one size |
| masks | the same as two masks of bits, one of places that grow and one of places that shrink |
| levels | positions, signs and whole numbers of a step |

Values are 16-bit floats in units of the largest, or 32-bit ones as they are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lithe.errors import FormatError
from lithe.model.checkpoint import DTYPES
from lithe.ops import golomb

WORDS = {dtype: word for word, dtype in DTYPES.items()}
HALF, SINGLE = "F16", "F32"  # how values may be written
MOST_LEVEL = 2**15
CHUNK = 2**20


@dataclass(frozen=True)
class Coded:
    """One tensor's difference as it is written. size: how many values the whole tensor has."""

    form: str
    size: int
    numbers: dict[str, float] = field(default_factory=dict)
    data: bytes = b""


def floats(delta: Tensor, form: str = HALF) -> Coded:
    return Coded("floats", delta.numel(), *_values(delta, form)) if delta.count_nonzero() else same(delta.numel())


def same(size: int) -> Coded:
    return Coded("same", size)


def kept(delta: Tensor, keep: Tensor, form: str = HALF) -> Coded:
    """The entries of `delta` where `keep` is true."""
    where, numbers, positions = _positions(keep)
    numbers2, values = _values(delta.flatten()[torch.from_numpy(where)], form)
    return Coded("kept", delta.numel(), numbers | numbers2, positions + values) if len(where) else same(delta.numel())


def drawn(delta: Tensor, seed: int, share: float, form: str = HALF) -> Coded:
    """The entries of `delta` at `draw(seed, share, its size)`."""
    numbers, values = _values(delta.flatten()[torch.from_numpy(draw(seed, share, delta.numel()))], form)
    return Coded("drawn", delta.numel(), numbers | {"seed": seed, "share": share}, values)


def signs(delta: Tensor, keep: Tensor, scale: float, *, masks: bool = False) -> Coded:
    """`scale` times the sign of `delta` where `keep` is true."""
    keep = keep & (delta != 0)
    if masks:
        plus, minus = golomb.ternary_masks(torch.where(keep, delta.sign(), 0).flatten().numpy())
        return Coded("masks", delta.numel(), {"scale": scale}, plus.tobytes() + minus.tobytes())
    where, numbers, positions = _positions(keep)
    below = (delta.flatten()[torch.from_numpy(where)] < 0).numpy()
    data = positions + np.packbits(below).tobytes()
    return Coded("signs", delta.numel(), numbers | {"scale": scale}, data) if len(where) else same(delta.numel())


def levels(delta: Tensor, whole: Tensor, step: float) -> Coded:
    """`step` times whole numbers."""
    keep = whole != 0
    where, numbers, positions = _positions(keep)
    found = whole.flatten()[torch.from_numpy(where)].long().clamp(-MOST_LEVEL, MOST_LEVEL).numpy()
    sizes = golomb.write(np.cumsum(np.abs(found)) - 1, 0)  # as gaps of width 0 they are in unary
    data = positions + np.packbits(found < 0).tobytes() + sizes
    numbers |= {"step": step, "sizes": len(sizes)}
    return Coded("levels", delta.numel(), numbers, data) if len(where) else same(delta.numel())


def exact(before: Tensor, after: Tensor) -> Coded:
    """The bits that differ. Both of one type and shape."""
    one, other = _planes(before), _planes(after)
    differ = one ^ other
    return Coded("exact", after.numel(), {}, zlib.compress(differ.tobytes(), 6)) if differ.any() else same(after.numel())


def wide(x: Tensor) -> torch.dtype:
    """In which differences of such tensors are counted."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def decode(coded: Coded, before: Tensor) -> Tensor:
    """The difference in wide floats, shaped as `before`, which it is added to. Raises FormatError for what cannot be."""
    if coded.size != before.numel():
        raise FormatError(f"a difference of {coded.size} values is told of a tensor that has {before.numel()}")
    if coded.form not in READERS:
        raise FormatError(f"a difference has the form {coded.form!r:.40}; known: {', '.join(READERS)}")
    found = _read(READERS[coded.form], coded, before).to(wide(before)).view(before.shape)
    if not torch.isfinite(found).all():
        raise FormatError("a difference holds what is no finite number")
    return found


def restore(coded: Coded, before: Tensor) -> Tensor:
    """`before` with the difference added, in its own type: in wide floats, then rounded once; to the bit where it is exact."""
    if coded.form == "exact":
        return _read(_exact, coded, before)
    if coded.form == "same":
        return before
    delta = decode(coded, before)
    return (before.to(delta.dtype) + delta).to(before.dtype)


def _read(reader: Callable[[Coded, Tensor], Tensor], coded: Coded, before: Tensor) -> Tensor:
    try:
        found = reader(coded, before)
    except (ValueError, KeyError, TypeError, OverflowError, zlib.error) as problem:
        raise FormatError(f"a difference of form {coded.form} cannot be read: {problem}") from None
    if not torch.isfinite(found).all():
        raise FormatError(f"a difference of form {coded.form} holds what is no finite number")
    return found


def draw(seed: int, share: float, size: int) -> np.ndarray:
    """Positions below `size`, each with chance `share`, by seed and position alone: the same on any machine, in any version."""
    found = []
    limit = np.uint64(min(2**64 - 1, int(share * 2.0**64)))
    for start in range(0, size, CHUNK):
        x = np.arange(start, min(start + CHUNK, size), dtype=np.uint64) + np.uint64(seed % 2**63)
        x = x * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64, which wraps on purpose
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        found.append(np.flatnonzero(x ^ x >> np.uint64(31) < limit) + start)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def masks(coded: Coded) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """A ternary difference as its size and two masks of bits: places that grow, and places that shrink."""
    before = torch.zeros(coded.size)
    scale = float(coded.numbers.get("scale", 0.0))
    return scale, golomb.ternary_masks((decode(coded, before).sign() * (1 if scale >= 0 else -1)).numpy())


def _positions(keep: Tensor) -> tuple[np.ndarray, dict[str, float], bytes]:
    where = keep.flatten().nonzero().flatten().numpy()
    b = golomb.width(len(where) / max(1, keep.numel()))
    data = golomb.write(where, b)
    return where, {"count": len(where), "low": b, "places": len(data)}, data


def _values(values: Tensor, form: str) -> tuple[dict[str, float], bytes]:
    largest = values.abs().max().item() if values.numel() else 0.0
    scale = largest or 1.0
    if form == SINGLE:
        return {}, values.float().contiguous().numpy().tobytes()
    return {"scale": scale}, (values.double() / scale).half().contiguous().numpy().tobytes()


def _read_values(data: np.ndarray, count: int, numbers: dict[str, float]) -> Tensor:
    kind = np.float16 if "scale" in numbers else np.float32
    if len(data) != count * np.dtype(kind).itemsize:
        raise ValueError(f"{len(data)} bytes do not hold {count} values")
    values = torch.from_numpy(data.view(kind).astype(np.float64))
    return values * _number(numbers, "scale") if "scale" in numbers else values


def _number(numbers: dict[str, float], key: str) -> float:
    value = numbers[key]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.40}")
    return float(value)


def _whole(numbers: dict[str, float], key: str) -> int:
    value = numbers[key]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{key} is {value!r:.40}, no whole number")
    return value


def _read_positions(coded: Coded) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and the bytes behind them."""
    data, places = np.frombuffer(coded.data, np.uint8), _whole(coded.numbers, "places")
    if places > len(data):
        raise ValueError(f"positions of {places} bytes in {len(data)}")
    count, low = _whole(coded.numbers, "count"), _whole(coded.numbers, "low")
    return golomb.read(data[:places], count, coded.size, low), data[places:]


def _scatter(size: int, where: np.ndarray, values: Tensor) -> Tensor:
    found = torch.zeros(size, dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    found[torch.from_numpy(where)] = values.to(found.dtype)
    return found


def _signs(data: np.ndarray, count: int) -> Tensor:
    if len(data) != (count + 7) // 8:
        raise ValueError(f"{len(data)} bytes do not hold {count} signs")
    return 1.0 - 2.0 * torch.from_numpy(np.unpackbits(data, count=count).astype(np.float32))


def _read_kept(coded: Coded, before: Tensor) -> Tensor:
    where, rest = _read_positions(coded)
    return _scatter(coded.size, where, _read_values(rest, len(where), coded.numbers))


def _read_drawn(coded: Coded, before: Tensor) -> Tensor:
    share = _number(coded.numbers, "share")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}")
    where = draw(_whole(coded.numbers, "seed"), share, coded.size)
    return _scatter(coded.size, where, _read_values(np.frombuffer(coded.data, np.uint8), len(where), coded.numbers))


def _read_signs(coded: Coded, before: Tensor) -> Tensor:
    where, rest = _read_positions(coded)
    return _scatter(coded.size, where, _signs(rest, len(where)).double() * _number(coded.numbers, "scale"))


def _read_masks(coded: Coded, before: Tensor) -> Tensor:
    data, half = np.frombuffer(coded.data, np.uint8), (coded.size + 7) // 8
    if len(data) != 2 * half or (data[:half] & data[half:]).any():
        raise ValueError(f"{len(data)} bytes are not two masks of {coded.size} places that share none")
    plus, minus = (np.unpackbits(part, count=coded.size).astype(np.float32) for part in (data[:half], data[half:]))
    return torch.from_numpy(plus - minus).double() * _number(coded.numbers, "scale")


def _read_levels(coded: Coded, before: Tensor) -> Tensor:
    where, rest = _read_positions(coded)
    sizes = _whole(coded.numbers, "sizes")
    if sizes > len(rest):
        raise ValueError(f"levels of {sizes} bytes in {len(rest)}")
    ends = golomb.read(rest[len(rest) - sizes :], len(where), MOST_LEVEL * max(1, len(where)), 0)
    found = torch.from_numpy(np.diff(ends, prepend=-1)).double()
    return _scatter(coded.size, where, found * _signs(rest[: len(rest) - sizes], len(where)) * _number(coded.numbers, "step"))


def _read_floats(coded: Coded, before: Tensor) -> Tensor:
    return _read_values(np.frombuffer(coded.data, np.uint8), coded.size, coded.numbers)


def _exact(coded: Coded, before: Tensor) -> Tensor:
    one, inflate = _planes(before), zlib.decompressobj()
    differ = np.frombuffer(inflate.decompress(coded.data, one.size + 1), np.uint8)
    if differ.size != one.size or not inflate.eof or inflate.unused_data:
        raise ValueError(f"the bits of {one.size} bytes are told otherwise")
    planes = one.reshape(-1) ^ differ
    whole = np.ascontiguousarray(planes.reshape(one.shape).T).reshape(-1)
    return torch.from_numpy(whole).view(before.dtype).view(before.shape)


def _read_exact(coded: Coded, before: Tensor) -> Tensor:
    return _exact(coded, before).to(wide(before)) - before.to(wide(before))


def _planes(x: Tensor) -> np.ndarray:
    """First bytes of all values, then all second ones, ...: [bytes of a value, values]."""
    raw = x.detach().contiguous().flatten().view(torch.uint8).numpy().reshape(-1, x.dtype.itemsize)
    return np.ascontiguousarray(raw.T)


TERNARY = ("same", "signs", "masks")
READERS = {"same": lambda coded, before: torch.zeros(coded.size), "exact": _read_exact, "floats": _read_floats,
           "kept": _read_kept, "drawn": _read_drawn, "signs": _read_signs, "masks": _read_masks, "levels": _read_levels}

"""What a step offers each group: levels, and the bytes that each of them takes as it is stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lithe.compress import masking
from lithe.compress.allocation import Option
from lithe.compress.groups import CUT_UNITS, Group
from lithe.errors import UnsupportedError, UsageError
from lithe.kernels import sparse
from lithe.model.decoder import Decoder
from lithe.model.narrow import RANGES, bytes_of

if TYPE_CHECKING:
    from lithe.compress.step import Step, Target

STORED = (2, 3, 4, 8)  # bits for which there are packed kinds: what sites choose from where no levels are said


def levels_of(step: Step, model: Decoder, group: Group, item: int) -> list[Option]:
    """What a step offers a group."""
    target, full = step.target, group.weights * item
    if group.unit == "entry":
        if target.pattern:
            n, m = masking.parts(target.pattern)
            return [Option(level=1 - n / m, cost=full * n / m)]
        if target.bytes is not None:
            shares = target.levels or [i / 200 for i in range(200)]
            return [Option(level=share, cost=left_bytes(model, group, share, item)) for share in shares]
        ratio, grain = float(target.ratio or 0), getattr(step.allocate, "grain", 20)
        steps = [] if step.allocate is None else [round(ratio + i / grain, 6) for i in range(-grain, grain)]  # they cost alike
        shares = target.levels or [share for share in steps if 0 <= share < 1]
        return [Option(level=s, cost=full * (1 - s)) for s in {0.0, ratio, *shares}]
    if group.unit in ("channel", "head"):
        unit = 1 if group.unit == "head" else target.multiple or (32 if group.units >= 512 else 8)
        counts = {*range(0, group.units + 1, unit), group.units} if not target.levels else {int(x) for x in target.levels}
        return [Option(level=count, cost=full * count / group.units) for count in counts]
    if group.unit in CUT_UNITS:
        return [Option(level=count, cost=full * count) for count in (0, 1)]
    if group.unit == "bits":
        return _bit_options(step, model, group, item)
    return _rank_options(step, model, group, item)


def left_bytes(model: Decoder, group: Group, share: float, item: int) -> float:
    """Bytes of a site's matrix as a folder holds it when this share of it is zero."""
    kind = next((kind for kind, dtype in sparse.KINDS.items() if dtype.itemsize == item), "")
    if not kind:
        raise UnsupportedError(f"zeros among weights of {item} bytes each save no bytes: say ratio or pattern")
    module: Any = model.get_submodule(group.sites[0])
    left = group.weights - math.ceil(share * group.weights)
    return min(group.weights * item, sparse.size(kind, module.out_features, module.in_features, left))


def _bit_options(step: Step, model: Decoder, group: Group, item: int) -> list[Option]:
    """Whole numbers of bits as the packed kinds store them."""
    target, wanted, known = step.target, widths(step), getattr(step.act, "widths", range(2, 9))
    if step.allocate is not None or not wanted:
        wanted = wanted if len(wanted) > 1 else tuple(float(bits) for bits in STORED if bits in known)
    if strange := [bits for bits in wanted if bits not in known]:
        raise UnsupportedError(f"{step.text!r} rounds to {', '.join(map(str, known))} bits, not {strange[0]:g}")
    return [Option(level=int(bits), cost=packed_bytes(model, group, int(bits), target, getattr(step.act, "kind", None)))
            for bits in wanted] + (
        [Option(level=None, cost=group.weights * item)] if target.bytes is not None else [])


def widths(step: Step) -> tuple[float, ...]:
    """The bits that a step names; none where it only says how many on average."""
    bits = step.target.bits
    return step.target.levels or (() if bits is None or bits != int(bits) else (bits,))


def packed_bytes(model: Decoder, group: Group, bits: int, target: Target, own: Any = None) -> float:
    """Bytes that a site takes in the narrowest packed kind of at least so many bits, scales included, or in a method's own
    kind; nominal: as if there were a kind of just so many bits."""
    module: Any = model.get_submodule(group.sites[0])
    n, k = module.out_features, module.in_features
    width = -(-k // 32) * 32 if target.group == -1 else target.group
    if own is not None:
        kind, each = own(bits, width)
        return bytes_of(kind, n, k, each)
    if target.count == "nominal":
        return n * (k * bits / 8 + 2 * -(-k // width))
    kind = min((kind for kind, (_, most) in RANGES.items() if most >= 2 ** (bits - 1) - 1),
               key=lambda kind: RANGES[kind][1], default="int8")
    return bytes_of(kind, n, k, width)


def _rank_options(step: Step, model: Decoder, group: Group, item: int) -> list[Option]:
    module: Any = model.get_submodule(group.sites[0])
    sides, full = module.in_features + module.out_features, group.weights
    if step.target.rank is not None:
        if step.target.rank > group.units:
            raise UsageError(f"{group.name}: rank {step.target.rank} is more than its {group.units}")
        return [Option(level=step.target.rank, cost=step.target.rank * sides * item)]
    most = (full - 1) // sides  # above it, two matrices are larger than one
    each = 1 if getattr(step.allocate, "every_rank", False) else max(1, most // 64)
    ranks = step.target.levels or range(each, most + 1, each)
    return [Option(level=int(rank), cost=rank * sides * item) for rank in ranks] + [Option(level=None, cost=full * item)]

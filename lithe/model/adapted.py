"""Adapters beside a frozen module: what a part is, which rows of a batch it is for, and the module that holds several.

A `Mix` names adapters and their weights in the order they apply, each on what the ones before left. A weight w moves w of the
way from the output without the adapter to the output with it. Axes: B batch, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lithe.errors import FormatError, UnsupportedError, UsageError
from lithe.kernels.pack import pack
from lithe.model.linear import PackedLinear, SparseLinear

if TYPE_CHECKING:
    from lithe.model.decoder import Decoder

Mix = tuple[tuple[str, float], ...]  # () is the base
BASE = -1  # the number of ()


class Part(nn.Module):
    """What an adapter puts at one site. Its weights are all its parameters; the site's own module is never written to."""

    kind: ClassVar[str]  # the word for it in saved folders
    leads: ClassVar[bool] = False  # whether it has rows that run through the layers before a request's own

    def before(self, x: Tensor) -> Tensor:
        """What the site's module reads instead of x."""
        return x

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        """What the site gives instead of y, which came of x; `below` tells the weight that made it."""
        return y

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one linear layer that computes the same. Raises UnsupportedError where there is none."""
        raise UnsupportedError(f"what a {self.kind} part computes is no linear layer, so it cannot be merged into weights")

    def hosts(self, model: Decoder, site: str) -> list[str]:
        """The sites whose modules must call this part: its own, unless it says otherwise."""
        return [site]

    def host(self, module: nn.Module, choice: Choice) -> Host:
        """A module in the place of `module` that calls parts of this kind."""
        return Adapted(module, choice)

    def problem(self, module: nn.Module) -> str:
        """Why it does not fit a site that holds `module`; "" where it does."""
        return ""

    def settings(self) -> dict[str, Any]:
        """What a folder must hold beside the tensors, as JSON."""
        return {}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Part:
        """The part with these settings and tensors. Raises FormatError where they are not this kind's."""
        raise NotImplementedError


@dataclass
class Below:
    """What lies under a part: the site's module, and the parts that applied before it."""

    module: Any
    levels: Sequence[tuple[Part, float]] = ()

    @property
    def weight(self) -> Tensor:
        """The matrix [N, K] in wide floats."""
        return merge(self.module, self.levels)[0]

    @property
    def bias(self) -> Tensor | None:
        if not self.levels:  # without reading the weight, which a packed one would unpack
            return None if self.module.bias is None else wide(self.module.bias)
        return merge(self.module, self.levels)[1]


@dataclass
class Groups:
    """The rows of one pass by the mix that applies to them."""

    choice: Choice
    members: list[tuple[Mix, Tensor | None]]  # None: every row
    led: dict[Mix, list] = field(default_factory=dict)  # keys and values of rows that go before the text, a layer each

    def enter(self) -> None:
        """From here on modules run for these rows; called by every block, so that recomputing one finds its own."""
        self.choice.current = self


class Choice:
    """Which adapters apply to which rows: one object that a model and all its adapted modules share."""

    def __init__(self) -> None:
        self.mixes: list[Mix] = []  # by number
        self.default: Mix = ()
        self.current = Groups(self, [((), None)])
        self.weights: dict[str, list[nn.Parameter]] = {}  # of each adapter that is attached
        self.leads: dict[str, Any] = {}  # parts that put rows before the text, by adapter
        self.owner: Any = None  # the rack
        self.kept: dict[Mix, tuple[Any, list]] = {}

    def number(self, mix: Mix) -> int:
        """The number that stands for a mix in `adapters_B`."""
        if mix and mix not in self.mixes:
            self.mixes.append(mix)
        return self.mixes.index(mix) if mix else BASE

    def choose(self, model: Decoder, adapters_B: Sequence[int | None] | Tensor | None, batch: int) -> Groups:
        """Group the rows of a pass. None stands for the default. Raises UsageError for numbers that stand for nothing."""
        wanted: list = [None] * batch if adapters_B is None else list(map(_whole, adapters_B))
        if len(wanted) != batch:
            raise UsageError(f"adapters_B has {len(wanted)} entries for a batch of {batch}")
        mixes = [self.default if n is None else self._mix(n) for n in wanted]
        distinct = dict.fromkeys(mixes)
        if gone := sorted({name for mix in distinct for name, _ in mix} - self.weights.keys()):
            raise UsageError(f"adapter {gone[0]!r} is not attached (it was removed, or is merged into the weights)")
        groups = Groups(self, [(mix, None) for mix in distinct])
        if len(distinct) > 1:
            rows = lambda mix: torch.tensor([b for b, m in enumerate(mixes) if m == mix], device=model.device)
            groups.members = [(mix, rows(mix)) for mix in distinct]
        groups.led = {mix: led for mix in distinct if (led := self._lead(model, mix))}
        groups.enter()
        return groups

    def _mix(self, number: int) -> Mix:
        if not BASE <= number < len(self.mixes):
            raise UsageError(f"adapters_B has {number}, which stands for no adapter; Rack.number gives those that do")
        return () if number == BASE else self.mixes[number]

    def _lead(self, model: Decoder, mix: Mix) -> list:
        """Keys and values of the rows that a mix puts before the text, worked out anew only where its weights changed."""
        if not any(name in self.leads for name, _ in mix):
            return []
        stamp = None if torch.is_grad_enabled() else tuple(w._version for name, _ in mix for w in self.weights[name])
        if stamp is not None and mix in self.kept and self.kept[mix][0] == stamp:
            return self.kept[mix][1]
        rest = tuple((name, weight) for name, weight in mix if name not in self.leads)
        led = [self.leads[name].rows(model, self.number(rest)) for name, _ in mix if name in self.leads]
        if stamp is not None:
            self.kept[mix] = stamp, led
        return led


class Host(nn.Module):
    """A module in the place of another, `base`, that calls the parts of several adapters."""

    def __init__(self, base: nn.Module, choice: Choice):
        super().__init__()
        self.base, self.parts, self.choice = base, nn.ModuleDict(), choice

    def groups(self, x: Tensor) -> list[tuple[list[tuple[Any, float]], Tensor | None, Mix]]:
        """The parts here that apply, with the rows they apply to: None for all of them."""
        members = self.choice.current.members
        found = [([(self.parts[name], w) for name, w in mix if name in self.parts], rows, mix) for mix, rows in members]
        found = [group for group in found if group[0]]
        if any(rows is not None for _, rows, _ in found):
            batch = sum(len(rows) for _, rows in members if rows is not None)
            if x.dim() < 3 or len(x) != batch:
                raise UnsupportedError(f"{batch} requests with different adapters reach a module that reads {tuple(x.shape)} "
                                       "and cannot tell them apart: run them in separate batches")
        return found


class Adapted(Host):
    """base(x), changed by the parts that the current pass wants for each row. Takes and gives what its base does."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        groups, fed, reads = self.groups(x), x, []
        for levels, rows, _ in groups:
            own = x if rows is None else x[rows]
            read, inner = _down(levels, own)
            reads.append(read)
            if inner is not own:
                fed = inner if rows is None else fed.index_copy(0, rows, inner)
        y = self.base(fed, *rest)
        for (levels, rows, _), read in zip(groups, reads, strict=True):
            own = _up(levels, read, y if rows is None else y[rows], self.base)
            y = own if rows is None else y.index_copy(0, rows, own)
        return y

    @property
    def in_features(self) -> int:
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.base.out_features  # type: ignore[return-value]


def _down(levels: Sequence[tuple[Part, float]], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each part reads, the last first, and what the base then reads."""
    reads = []
    for part, weight in reversed(levels):
        reads.append(x)
        inner = part.before(x)
        x = inner if weight == 1 or inner is x else torch.lerp(x, inner, weight)
    return reads, x


def _up(levels: Sequence[tuple[Part, float]], reads: list[Tensor], y: Tensor, base: nn.Module) -> Tensor:
    for level, (part, weight) in enumerate(levels):
        out = part.after(reads.pop(), y, Below(base, levels[:level]))
        y = out if weight == 1 or out is y else torch.lerp(y, out, weight)
    return y


def merge(module: Any, levels: Iterable[tuple[Part, float]]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, in wide floats, of one linear layer that computes what the module and the parts do."""
    weight_NK = wide(module.weight)
    bias_N = None if module.bias is None else wide(module.bias)
    for part, share in levels:
        new_NK, new_N = part.merged(weight_NK, bias_N)
        if share != 1:
            new_NK = torch.lerp(weight_NK, new_NK, share)
            if new_N is not None:
                new_N = torch.lerp(torch.zeros_like(new_N) if bias_N is None else bias_N, new_N, share)
        weight_NK, bias_N = new_NK, new_N
    return weight_NK, bias_N


def remade(module: Any, weight_NK: Tensor, bias_N: Tensor | None) -> nn.Module:
    """A layer of the module's kind and precision with other weights, which need no gradients.

    Raises UnsupportedError for a module whose kind would round them to fewer than 16 bits.
    """
    if isinstance(module, PackedLinear):
        if module.kind not in ("fp32", "bf16"):
            raise UnsupportedError(f"merging into {module.kind} weights would round the adapter away with them: keep it beside "
                                   "them, or merge into the model before it is packed (load with fast=False)")
        return PackedLinear(pack(weight_NK.float(), module.kind, module.group), bias_N)
    if isinstance(module, SparseLinear):
        raise UnsupportedError("merging into sparse weights would fill their zeros: keep the adapter beside them, or merge "
                               "into the model before it is stored (compress with --dense-zeros)")
    if not hasattr(module, "in_features"):
        raise UnsupportedError(f"a {type(module).__name__} is no linear layer, so nothing can be merged into it")
    dtype = module.weight.dtype
    with torch.device("meta"):
        new = nn.Linear(module.in_features, module.out_features, bias=bias_N is not None)
    new.weight = nn.Parameter(weight_NK.to(dtype), requires_grad=False)
    if bias_N is not None:
        new.bias = nn.Parameter(bias_N.to(dtype), requires_grad=False)
    return new


def wide(x: Tensor) -> Tensor:
    """In at least float32, off the graph."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def width_problem(module: Any, inputs: int, outputs: int) -> str:
    """Why a part of so many inputs and outputs does not fit a linear layer; "" where it does."""
    if not hasattr(module, "in_features"):
        return f"it is for a linear layer, and a {type(module).__name__} is none"
    have = (module.in_features, module.out_features)
    return "" if have == (inputs, outputs) else f"it is for {inputs} inputs and {outputs} outputs, not {have[0]} and {have[1]}"


def taken(where: str, held: Mapping[str, Any], wanted: Iterable[str]) -> list[Any]:
    """The values of exactly the wanted keys. Raises FormatError for missing and unknown ones, and for tensors of integers."""
    wanted = list(wanted)
    if held.keys() != set(wanted):
        raise FormatError(f"{where} must have {', '.join(wanted)}; it has {', '.join(map(str, sorted(held))) or 'nothing'}")
    if whole := [key for key in wanted if isinstance(held[key], Tensor) and not held[key].is_floating_point()]:
        raise FormatError(f"{where}: {whole[0]} holds no floats")
    return [held[key] for key in wanted]


def _whole(number: Any) -> int | None:
    if number is None:
        return None
    if isinstance(number, bool) or int(number) != number:
        raise UsageError(f"adapters_B has {number!r}, which is no number of an adapter")
    return int(number)

"""Parts that are vectors or small networks, and every kind by its word. Axes: N outputs, K inputs, C width, R inner width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lithe.errors import FormatError
from lithe.model.adapted import Below, Part, taken, width_problem
from lithe.model.dual import Dual, Thinned
from lithe.model.lowrank import Directed, LowRank, Singular
from lithe.model.masked import Masked
from lithe.model.modules import ACTIVATIONS
from lithe.model.prefixed import Prefix, Prompt
from lithe.model.sliced import Slice, Whole
from lithe.model.sparse import Settling, Sparse


class Scale(Part):
    """Each input (`where` "in") or output ("out") of a linear layer times a number."""

    kind = "scale"

    def __init__(self, vector: Tensor, where: str):
        super().__init__()
        self.vector, self.where = nn.Parameter(vector), where

    def before(self, x: Tensor) -> Tensor:
        return (x * self.vector).to(x.dtype) if self.where == "in" else x

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return (y * self.vector).to(y.dtype) if self.where == "out" else y

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        vector = self.vector.detach().to(weight_NK)
        if self.where == "in":
            return weight_NK * vector, bias_N
        return weight_NK * vector[:, None], None if bias_N is None else bias_N * vector

    def problem(self, module: nn.Module) -> str:
        inputs, outputs = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
        return width_problem(module, *((len(self.vector), outputs) if self.where == "in" else (inputs, len(self.vector))))

    def settings(self) -> dict[str, Any]:
        return {"where": self.where}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Scale:
        (where,), (vector,) = taken("a scale", settings, ["where"]), taken("a scale", tensors, ["vector"])
        if where not in ("in", "out") or vector.dim() != 1:
            raise FormatError(f"a scale is {where!r:.50} with {list(vector.shape)}: \"in\" or \"out\" and a vector are wanted")
        return cls(vector, where)


class Shift(Part):
    """A linear layer's output plus a vector: what training a bias changes, also where the layer has none."""

    kind = "shift"

    def __init__(self, vector_N: Tensor):
        super().__init__()
        self.vector = nn.Parameter(vector_N)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        return (y + self.vector).to(y.dtype)

    def merged(self, weight_NK: Tensor, bias_N: Tensor | None) -> tuple[Tensor, Tensor | None]:
        vector_N = self.vector.detach().to(weight_NK)
        return weight_NK, vector_N if bias_N is None else bias_N + vector_N

    def problem(self, module: nn.Module) -> str:
        return width_problem(module, getattr(module, "in_features", 0), len(self.vector))

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Shift:
        _, (vector_N,) = taken("a shift", settings, []), taken("a shift", tensors, ["vector"])
        if vector_N.dim() != 1:
            raise FormatError(f"a shift has shape {list(vector_N.shape)}: a vector is wanted")
        return cls(vector_N)


class Bottleneck(Part):
    """h + scale * up(act(down(h))), h being what the site gives; with `parallel` the network reads what the site reads."""

    kind = "bottleneck_network"

    def __init__(self, down_RC: Tensor, down_R: Tensor, up_CR: Tensor, up_C: Tensor, *, parallel: bool, activation: str,
                 scale: float = 1.0):
        super().__init__()
        self.down, self.down_bias = nn.Parameter(down_RC), nn.Parameter(down_R)
        self.up, self.up_bias = nn.Parameter(up_CR), nn.Parameter(up_C)
        self.parallel, self.activation, self.scale = parallel, activation, float(scale)

    def after(self, x: Tensor, y: Tensor, below: Below) -> Tensor:
        read = (x if self.parallel else y).to(self.down.dtype)
        inner = ACTIVATIONS[self.activation](F.linear(read, self.down, self.down_bias))
        return (y + self.scale * F.linear(inner, self.up, self.up_bias)).to(y.dtype)

    def problem(self, module: nn.Module) -> str:
        last: Any = (m for name, m in module.named_modules() if name.endswith(("o_proj", "down_proj")))  # what writes the width
        width = next((m.out_features for m in last), None)
        return "" if width in (None, len(self.up)) else f"it is for a width of {len(self.up)}, not {width}"

    def settings(self) -> dict[str, Any]:
        return {"parallel": self.parallel, "activation": self.activation, "scale": self.scale}

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Bottleneck:
        parallel, activation, scale = taken("a bottleneck", settings, ["parallel", "activation", "scale"])
        down_RC, down_R, up_CR, up_C = found = taken("a bottleneck", tensors, ["down", "down_bias", "up", "up_bias"])
        known = isinstance(activation, str) and activation in ACTIVATIONS
        if type(parallel) is not bool or not known or type(scale) not in (int, float) or not abs(scale) <= 1e6:
            raise FormatError(f"a bottleneck has the settings {settings!r:.200}, which are none of its own")
        if down_RC.dim() != 2 or up_CR.shape != down_RC.shape[::-1] or down_R.shape != down_RC.shape[:1] or \
                up_C.shape != down_RC.shape[1:]:
            raise FormatError(f"a bottleneck cannot be made of {', '.join(str(list(t.shape)) for t in found)}")
        return cls(*found, parallel=parallel, activation=activation, scale=scale)


KINDS: tuple[type[Part], ...] = (LowRank, Singular, Directed, Scale, Shift, Bottleneck, Prefix, Prompt, Sparse, Settling, Slice,
                                Whole, Masked, Thinned, Dual)
PARTS = {kind.kind: kind for kind in KINDS}


def wide_dtype(model: Any) -> torch.dtype:
    """The precision of trainable weights beside this model's."""
    return torch.float64 if model.dtype == torch.float64 else torch.float32

"""Groups: what gets one level of compression. A group is a linear site, the units of half a block, or a whole block.

| unit | a group is | its level |
|---|---|---|
| entry | a linear site | the share of its weights that is zero |
| channel | a block's FFN | inner channels kept |
| head | a block's attention | key-value heads kept, each with the query heads that read it |
| half, layer | half a block or all of it | 1 kept, 0 gone |
| width | a block's FFN, and its attention | as of channels and of heads |
| bits | a linear site | bits of a weight |
| rank | a linear site | inner width of the two matrices that replace it |
| site | a linear site, in a mixture | a way and its level, such as way=3; 0 gone with its half |

A level of None leaves a group as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lithe.errors import UnsupportedError, UsageError
from lithe.model.decoder import Decoder
from lithe.model.linear import Factored

SITE_UNITS, CUT_UNITS = ("entry", "bits", "rank"), ("channel", "head", "half", "layer", "width")
UNITS = (*SITE_UNITS, *CUT_UNITS)
MIXED = "site"
WIDTHS = ("head", "channel")  # what "width" stands for
Level = int | float | str | None
ATTENTION, FFN = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Group:
    """unit: as above. sites: its linear layers by full name. units: how many it has. weights: of all its sites."""

    name: str
    unit: str
    layer: int
    sites: tuple[str, ...]
    units: int
    weights: int

    def site(self, leaf: str) -> str:
        """The full name of its site `leaf`, such as "down_proj"."""
        return next(name for name in self.sites if name.endswith(f".{leaf}"))

    @property
    def each(self) -> float:
        """Weights of one unit."""
        return self.weights / self.units

    def inside(self, site: str) -> str:
        """The name that a site has within its block, as the calibration walk gives it."""
        return site.split(".", 2)[2]


def known(units: Iterable[str]) -> list[str]:
    """The units that a method of these can be asked for: who knows heads and channels knows both at once."""
    found = list(units)
    return found + ["width"] * (set(WIDTHS) <= set(found) and "width" not in found)


def find(model: Decoder, unit: str, sites: str = "*") -> list[Group]:
    """The groups of a model, in the order of the walk. sites: of entry, bits and rank, patterns joined by +, such as
    "mlp.*+self_attn.o_proj", those behind a ! left out: "*+!k_proj". Raises UsageError where there are none,
    UnsupportedError for traits that cannot be cut.
    """
    if unit not in UNITS:
        raise UsageError(f"there is no unit {unit!r}; known: {', '.join(UNITS)}")
    patterns = sites.split("+")
    kinds = WIDTHS if unit == "width" else (unit,)
    made = [group for number in range(len(model.layers)) for kind in kinds for group in _of(model, number, kind, patterns)]
    if not made:
        raise UsageError(f"this model has no {unit} groups" + (f" at {sites}" if unit in SITE_UNITS else ""))
    return made


def _of(model: Decoder, number: int, unit: str, patterns: list[str]) -> Iterator[Group]:
    block, name = model.layers[number], f"layers.{number}"
    linear = {f"{name}.{inner}": module for inner, module in block.named_modules() if _whole(inner, module)}
    weights = lambda found: sum(linear[site].in_features * linear[site].out_features for site in found)
    if unit in SITE_UNITS:
        for site in linear:
            inner = site.split(".", 2)[2]
            if _matches(inner, patterns):
                if isinstance(linear[site], Factored):
                    raise UnsupportedError(f"{site} is a pair of thinner matrices already, which nothing else is done to: "
                                           "factor behind the other steps, or leave such layers out (sites=*+!NAME)")
                units = weights([site]) if unit == "entry" else min(linear[site].in_features, linear[site].out_features)
                yield Group(name=site, unit=unit, layer=number, sites=(site,), units=1 if unit == "bits" else units,
                            weights=weights([site]))
        return
    attention = tuple(f"{name}.self_attn.{leaf}" for leaf in ATTENTION) if block.self_attn is not None else ()
    ffn = tuple(f"{name}.mlp.{leaf}" for leaf in FFN if f"{name}.mlp.{leaf}" in linear) if block.mlp is not None else ()
    _check(model, attention + ffn, linear, unit)
    if unit == "layer":
        yield Group(name=name, unit=unit, layer=number, sites=(*attention, *ffn), units=1, weights=weights(attention + ffn))
    if unit in ("head", "half") and attention:
        units = 1 if unit == "half" else model.config.layer(number).kv_heads
        yield Group(name=f"{name}.self_attn", unit=unit, layer=number, sites=attention, units=units, weights=weights(attention))
    if unit in ("channel", "half") and ffn:
        units = 1 if unit == "half" else linear[f"{name}.mlp.down_proj"].in_features
        yield Group(name=f"{name}.mlp", unit=unit, layer=number, sites=ffn, units=units, weights=weights(ffn))


def _matches(inner: str, patterns: list[str]) -> bool:
    """Whether a site, by its full name in the block or the last part of it, is asked for and not left out."""
    said = [(not p.startswith("!"), any(fnmatchcase(name, p.removeprefix("!")) for name in (inner, inner.rpartition(".")[2])))
            for p in patterns]
    return any(wanted and hit for wanted, hit in said) and not any(hit and not wanted for wanted, hit in said)


def _whole(inner: str, module: object) -> bool:
    """A linear layer that is not a piece of another one."""
    return hasattr(module, "in_features") and not inner.endswith((".a", ".b", ".base"))


def _check(model: Decoder, wanted: tuple[str, ...], linear: dict, unit: str) -> None:
    config = model.config
    if config.qk_norm == "all" and unit == "head":
        raise UnsupportedError("this model norms all heads together (qk_norm=\"all\"): without some heads the norm of the "
                               "others would change; cut channels or layers instead")
    if config.sub_norm and unit in ("head", "channel"):
        raise UnsupportedError("this model norms what o_proj and down_proj read: without some units the norm of the others "
                               "would change; cut whole layers instead")
    if config.chosen:
        raise UnsupportedError("this model's FFNs choose their channels token by token: cut before they learn to")
    if config.experts and unit in ("channel", "half", "layer"):
        raise UnsupportedError("blocks of experts cannot be cut by units yet; compress their linear sites instead")
    if missing := [site for site in wanted if site not in linear]:
        raise UnsupportedError(f"{missing[0]} is no linear layer, so its block cannot be cut")

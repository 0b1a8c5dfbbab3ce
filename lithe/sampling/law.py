"""The law a request samples from: its warps in order. Axes: N rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from lithe import registry
from lithe.errors import UsageError


class Law:
    """Warped logits. Greedy where a warp says so (temperature 0): then only the largest counts.

    >>> Law.of(temperature=0.8, min_p=0.05)
    Law(temperature:temperature=0.8, min_p:min_p=0.05)
    >>> Law.of().greedy
    True
    """

    def __init__(self, specs: Seq[registry.Spec] = ()):
        made = [(spec, spec.entry.module.Method(spec.knobs)) for spec in specs]
        made.sort(key=lambda pair: pair[1].stage)  # the order of transformers: penalties, temperature, truncation as listed
        self.specs = tuple(spec for spec, _ in made)
        self.warps = tuple(warp for _, warp in made)
        self.greedy = not any(getattr(warp, "samples", False) for warp in self.warps)
        self.bare = all(getattr(warp, "samples", None) is False for warp in self.warps)  # a temperature of 0 changes no logits
        self.reads_context = any(warp.reads_context for warp in self.warps)

    @classmethod
    def of(cls, *texts: str, **values: Any) -> Law:
        """A law from specs and main knobs by name: `Law.of(temperature=0.8, top_k=40)`. None or a warp's OFF leaves it out."""
        specs = [registry.parse(text, _SHELF) for text in texts]
        for name, value in values.items():
            if value is None:  # nor looked for: a warp that nobody asks for may be missing from the shelf
                continue
            entry = registry.find(name, _SHELF)
            if value != getattr(entry.module, "OFF", None):
                specs.append(registry.Spec(entry, {entry.module.MAIN: value}))
                _ = specs[-1].knobs
        names = [spec.entry.name for spec in specs]
        if len(set(names)) != len(names):
            raise UsageError(f"a warp is asked for twice: {', '.join(names)}")
        return cls(specs)

    @classmethod
    def wished(cls, settings: Mapping[str, Any], *texts: str, **values: Any) -> Law:
        """The law a model's generation_config asks for, where `texts` and `values` do not say otherwise.

        A model that does not ask to sample is decoded greedily; its penalties hold either way, as in transformers.
        """
        named = {registry.parse(text, _SHELF).entry.name for text in texts} | {k for k, v in values.items() if v is not None}
        wishes = {name: value for name, value in settings.items() if name in {e.name for e in registry.entries(shelf=_SHELF)}}
        if settings.get("do_sample"):
            wishes = dict(temperature=1.0) | wishes
        else:
            wishes = {name: value for name, value in wishes.items() if registry.find(name, _SHELF).module.Method.stage == 0}
        law = cls.of(*texts, **{name: value for name, value in wishes.items() if name not in named}, **values)
        said = any(hasattr(warp, "samples") for warp in law.warps)  # by a temperature, be it 0
        idle = [spec.entry.name for spec, warp in zip(law.specs, law.warps, strict=True) if warp.stage == 2]
        if law.greedy and not said and (idle := [name for name in idle if name in named]):
            raise UsageError(f"{', '.join(idle)} is for sampling, but without a temperature decoding is greedy: give one above "
                             "0 as well, or 0 to have it so")
        return law

    def __call__(self, logits_NV: Tensor, contexts: Seq[Seq[int]] | None = None) -> Tensor:
        """Warped logits [N, V]; what is cut off is -inf. contexts[n] is all tokens before row n's next one."""
        if self.reads_context and contexts is None:
            raise UsageError(f"{self} reads the text so far: give contexts")
        if self.warps and logits_NV.dtype in (torch.bfloat16, torch.float16):
            logits_NV = logits_NV.float()  # dividing in half precision would round the law
        for warp in self.warps:
            logits_NV = warp(logits_NV, contexts)
        return logits_NV

    def __repr__(self) -> str:
        return f"Law({', '.join(map(str, self.specs))})"


_SHELF = "warp"

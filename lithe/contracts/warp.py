"""Warps: what they do to one row of logits, and that they do it to no other. Axes: N rows, V vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lithe.registry import Entry

CUT = float("-inf")


def check_subset(entry: Entry) -> None:
    """What is kept was there before, with its own logit, and there is always something."""
    for method, logits_NV, contexts in cases(entry):
        out_NV = method(logits_NV, contexts)
        kept_NV = out_NV > CUT
        assert torch.equal(out_NV[kept_NV], logits_NV[kept_NV]), "a token that is kept has another logit than before"
        alive_N = (logits_NV > CUT).any(-1)
        assert kept_NV.any(-1)[alive_N].all(), "a row loses every token"
        total_N = out_NV.double().softmax(-1).sum(-1)[alive_N]
        assert torch.allclose(total_N, torch.ones_like(total_N), atol=1e-12, rtol=0), "a row's law does not sum to one"


def check_verbs(entry: Entry) -> None:
    """Shape and dtype stay, the input is left alone, what is cut off stays so, and rows are bitwise independent."""
    assert entry.module.MAIN in {field.name for field in dataclasses.fields(entry.module.Knobs)}, "MAIN is not one of its knobs"
    for method, logits_NV, contexts in cases(entry):
        assert method.stage in (0, 1, 2) and isinstance(method.reads_context, bool)
        before_NV = logits_NV.clone()
        out_NV = method(logits_NV, contexts)
        assert out_NV.shape == logits_NV.shape and out_NV.dtype == logits_NV.dtype, "it changes the shape or dtype"
        assert torch.equal(logits_NV, before_NV), "it changes its input in place"
        assert (out_NV[logits_NV == CUT] == CUT).all(), "it brings a token back that was cut off"
        assert not out_NV.isnan().any(), "it makes logits that are no numbers"
        if not method.reads_context:
            assert torch.equal(out_NV, method(logits_NV, None)), "it reads contexts unsaid"
        for n in range(len(logits_NV)):
            alone_1V = method(logits_NV[n : n + 1], contexts[n : n + 1])
            assert torch.equal(out_NV[n : n + 1], alone_1V), "rows depend on each other"


def cases(entry: Entry) -> Iterator[tuple[Any, Tensor, list[list[int]]]]:
    """The method at its defaults and at the ends of its knobs' ranges, on rows flat, sharp, tied and partly or all cut off."""
    module = entry.module
    settings: list[dict[str, float]] = [{}]
    for field in dataclasses.fields(module.Knobs):
        settings += [{field.name: end} for end in (field.metadata.get("low"), field.metadata.get("high")) if end is not None]
    for number, values in enumerate(settings):
        method = module.Method(entry.knobs(**values))
        dice = torch.Generator().manual_seed(number)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            scale_N = torch.tensor([0, 1e-3, 3, 3, 3, 3, 30, 1])
            logits_NV = torch.randn(8, 23, generator=dice, dtype=torch.float64) * scale_N[:, None]
            logits_NV[3] = logits_NV[3].round()
            logits_NV[4:6, torch.randperm(23, generator=dice)[:15]] = CUT
            logits_NV[5, 1:] = CUT
            logits_NV[7] = CUT
            contexts = [torch.randint(23, (n + 1,), generator=dice).tolist() for n in range(8)]
            yield method, logits_NV.to(dtype), contexts

"""OWL: more outliers, more weights; none, even shares."""

import torch

from lithe.compress.run import Stage
from lithe.compress.step import parse
from lithe.compress.surgery import copied
from lithe.contracts.compressing import text
from lithe.contracts.small import small_model


def test_a_block_of_more_outliers_keeps_more_and_even_blocks_keep_alike():
    model = copied(small_model())
    for name, weight in model.named_parameters():
        if "proj" in name:
            weight.data = torch.full_like(weight, 0.1)
            if "layers.1" in name:
                weight.data.flatten()[::10] = 1e3
    step = lambda spec: Stage(copied(model), parse(spec), text(), 0, lambda *_: None, None, 0, 8).allocate()
    found = step("magnitude_pruning:ratio=0.5 + outlier_weighed")
    gone = {layer: {level for name, level in found.levels.items() if name.startswith(f"layers.{layer}.")} for layer in (0, 1)}
    assert max(gone[1]) < 0.5 < min(gone[0])
    assert max(gone[0]) <= 0.58 + 0.01 and 0.99 * found.budget <= found.cost <= found.budget * (1 + 1e-9)
    assert len(set(step("magnitude_pruning:ratio=0.5 + outlier_weighed:spread=0").levels.values())) == 1

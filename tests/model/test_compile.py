"""A training pass is one graph: nothing in it makes torch.compile give up."""

import torch

from lithe.model.config import Config
from lithe.model.decoder import ALL, Decoder


def test_a_causal_pass_without_a_cache_has_no_graph_breaks():
    config = Config(vocab=32, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, context=64, tied=True)
    model = Decoder(config).init(0).train()
    ids_BT = torch.arange(24).view(2, 12)
    found = torch._dynamo.explain(lambda ids: model(ids, logits=ALL).scores.float().logsumexp(-1).sum())(ids_BT)
    assert found.graph_break_count == 0 and found.graph_count == 1, found.break_reasons

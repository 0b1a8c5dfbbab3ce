"""What training foretells of a place is what the sampler foretells of it, where logits stand one row before their place."""

import pytest
import torch

from lithe.contracts.diffuse import small_model
from lithe.diffuse.canvas import Canvas
from lithe.diffuse.passes import Query, Spent
from lithe.diffuse.plan import plan
from lithe.model.decoder import Decoder
from lithe.sampling.sequence import Sequence
from lithe.train.masked import predicted


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("attends", "block"), [("full", 0), ("blocks", 4)])
def test_training_and_sampling_see_the_same(attends, block, shifted):
    whole = small_model(attends, block)
    model = Decoder(whole.config.replace(shifted=shifted)).double()
    model.load_state_dict(whole.state_dict())
    clean_T, open_P = torch.arange(3, 15), [8, 9, 11]  # a block whose first place is open, behind clean ones
    noisy_T = clean_T.clone()
    noisy_T[open_P] = model.config.mask_token
    with torch.no_grad():
        logits_BTV = predicted(model, {"ids_BT": noisy_T[None], "clean_BT": clean_T[None]})
    canvas = Canvas.of(Sequence(clean_T[:8].tolist(), limit=4, context=64), model.config.mask_token)
    canvas.commit(torch.tensor([10]), clean_T[[10]])
    with torch.no_grad():
        guess = plan(model).reader.run([canvas], [Query(torch.arange(12), canvas.ids_T[None])], [Spent()])[0][0]
    assert guess.places_P.tolist() == open_P
    seen_PV = logits_BTV[0, open_P]
    seen_PV[:, model.config.mask_token] = float("-inf")
    torch.testing.assert_close(guess.logits_PV, seen_PV, rtol=0, atol=1e-9)

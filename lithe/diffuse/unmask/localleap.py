"""Around tokens that are sure, let their neighbours pass a lower threshold: certainty spreads locally."""

from dataclasses import dataclass

from lithe.card import Card, knob
from lithe.diffuse.canvas import most

CARD = Card(paper="Accelerating Diffusion LLM Inference via Local Determinism Propagation", row=4,
            promises=("one_step_is_plain",))
ONE = {"floor": 1.01}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    floor: float = knob(0.9, "least probability of an anchor", low=0, high=2)
    relaxed: float = knob(0.75, "least probability of its neighbours", low=0, high=2)
    radius: int = knob(4, "how far an anchor reaches, in places", low=0)


class Method:
    def __init__(self, knobs, model):
        self.knobs = knobs

    def select(self, canvas, guess, block):
        anchors_P = guess.sure_P >= self.knobs.floor  # open places only, anew each step
        if not anchors_P.any():
            return most(guess.sure_P, 1)
        apart_PA = (guess.places_P[:, None] - guess.places_P[anchors_P]).abs()
        near_P = (apart_PA <= self.knobs.radius).any(1)
        return anchors_P | (near_P & (guess.sure_P >= self.knobs.relaxed)) | most(guess.sure_P, 1)

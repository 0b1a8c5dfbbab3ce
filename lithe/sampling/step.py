"""What one round of any loop did for one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from lithe.sampling.sequence import Sequence


@dataclass
class Step:
    """What one round did for one sequence. Counted by the loop: a method never counts itself."""

    sequence: Sequence
    tokens: list[int]
    sources: list[str]  # where each token came from: the draft's name or its word for it, "" for the model's own
    pieces: list[str]  # the text each token made certain
    nodes: int  # rows of the pass
    seconds: dict[str, float] = field(default_factory=dict)  # by part; shared by the batch

    @property
    def text(self) -> str:
        return "".join(self.pieces)

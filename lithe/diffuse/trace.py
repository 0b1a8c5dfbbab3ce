"""How a canvas came to be filled, pass by pass: what was foretold, what was committed, how surely, what changed its mind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lithe.diffuse.canvas import OPEN, Canvas, Guess


@dataclass
class Frame:
    """A pass: for each place that was open what it foretold and how surely; which places were committed after it."""

    foretold: dict[int, tuple[int, float]]
    committed: list[int] = field(default_factory=list)


@dataclass
class Trace:
    """The frames of one canvas. `see` is what a plan's `watch` is given; `end` after the run."""

    canvas: Canvas | None = None
    frames: list[Frame] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)

    def see(self, canvas: Canvas, guess: Guess) -> None:
        self.canvas = canvas
        self._settle()
        self.frames.append(Frame({place: (token, sure) for place, token, sure in
                                  zip(guess.places_P.tolist(), guess.tokens_P.tolist(), guess.sure_P.tolist(), strict=True)}))
        self._open = set(canvas.open().tolist())

    def end(self) -> Trace:
        self._settle()
        return self

    def _settle(self) -> None:
        """Give the last frame what has been committed since."""
        if self.frames and self.canvas is not None:
            now = {place for place in self._open if place < self.canvas.end and int(self.canvas.when_T[place]) != OPEN}
            self.frames[-1].committed, self._open = sorted(now), self._open - now

    def json(self, word: Callable[[int], str]) -> dict[str, Any]:
        """Words by place, and by pass the committed places with their chance, the foretold words, and those that were
        guessed otherwise a pass before ("revised"). word: the text of a token."""
        assert self.canvas is not None
        canvas, passes, before = self.canvas, [], dict[int, int]()
        for frame in self.frames:
            now = {place: token for place, (token, _) in frame.foretold.items()}
            passes.append({
                "committed": {place: round(float(canvas.sure_T[place]), 4) for place in frame.committed},
                "guessed": {place: [word(token), round(sure, 4)] for place, (token, sure) in frame.foretold.items()},
                "revised": sorted(place for place, token in now.items() if before.get(place, token) != token)})
            before |= now
        return {"prompt": canvas.prompt, "words": [word(token) for token in canvas.ids_T.tolist()], "passes": passes}

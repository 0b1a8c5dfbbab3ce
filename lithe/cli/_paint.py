"""Text as it is decoded: tokens coloured by where they came from."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

OWN = ""  # the model's own tokens stay plain
COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red")


class Painter:
    """Writes steps to the terminal, each source in a colour of its own; plain text where it is no terminal."""

    def __init__(self, console: Console | None = None, *, show_sources: bool = True):
        self.console = console or Console(highlight=False)
        self.held = Text()  # for a picture: text in pieces could not be wrapped
        self.colour: dict[str, str] = {}
        self.show = show_sources and self.console.is_terminal

    def style(self, source: str) -> str:
        """The colour of a source, dealt in the order sources appear."""
        if source == OWN:
            return ""
        return self.colour.setdefault(source, COLOURS[len(self.colour) % len(COLOURS)])

    def write(self, step: Any) -> None:
        """Print a step's text at once, unless the console is quiet."""
        if self.console.quiet:
            return
        if not self.show:
            sys.stdout.write(step.text)
            sys.stdout.flush()
            return
        line = self.held if self.console.record else Text()
        for piece, source in zip(step.pieces, step.sources, strict=True):
            line.append(piece, style=self.style(source))
        if self.console.record:
            return
        self.console.print(line, end="", soft_wrap=True)
        self.console.file.flush()

    def end(self) -> None:
        """Print what was held back."""
        if self.held:
            self.console.print(self.held, end="")
            self.held = Text()


class Tally:
    """What a run took, summed over its steps."""

    def __init__(self) -> None:
        self.tokens = self.passes = 0
        self.seconds = 0.0
        self.ids: list[int] = []

    def add(self, step: Any) -> None:
        self.tokens += len(step.tokens)
        self.passes += 1
        self.seconds += sum(s for name, s in step.seconds.items() if name != "prefill")
        self.ids += step.tokens

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / max(self.passes, 1)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        tokens = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        return (f"{tokens} in {self.passes} pass{'' if self.passes == 1 else 'es'}, {self.tokens_per_pass:.2f} a pass, "
                f"{self.tokens_per_s:.0f} tokens/s")

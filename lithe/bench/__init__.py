"""Measuring: every method beside plain decoding in one run, counted by the loop, kept in a ledger.

Called, the room is its main function: `lithe.bench(model, methods=[...], prompts=[...])`, see `lithe.bench.runner.bench`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called: lithe's face offers a function of this room's name, and importing the room would hide it."""

    def __call__(self, *words: Any, **settings: Any) -> Any:
        from lithe.bench.runner import bench

        return bench(*words, **settings)


sys.modules[__name__].__class__ = _Room

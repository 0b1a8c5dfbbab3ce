"""Tuning: adapters, the rack that holds them, their folders, and the differences of checkpoints.

Called, the room is its main function: `lithe.tune(model, data, out, method=...)`, see `lithe.tune.run.tune`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called: lithe's face offers a function of this room's name, and importing the room would hide it."""

    def __call__(self, *words: Any, **settings: Any) -> Any:
        from lithe.tune.run import tune

        return tune(*words, **settings)


sys.modules[__name__].__class__ = _Room
